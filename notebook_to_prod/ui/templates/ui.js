// What a page cannot do by itself: it looks whether something has changed, it takes keys, and it sorts and filters what is there.
"use strict";
(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const EVERY = 2000;  // Milliseconds between two looks
  const sorts = new Map();  // Column and direction by the caption of a table
  const kept = new Map();  // Texts of filters by their place

  // Theme: a cookie, so that the server writes the page and the notebook in it as they are wanted
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  function nameTheme() { find("#theme").textContent = isDark() ? "Light" : "Dark"; }
  function turn() {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    document.cookie = `n2p_theme=${theme}; path=/; max-age=31536000; samesite=strict`;
    nameTheme();
    const frame = find("#frame iframe");
    if (frame) frame.src = frame.getAttribute("src");
  }

  // Tables that are whole on the page are sorted and filtered here; what comes in pages is sorted by the server
  function valueOf(row, column) {
    const cell = row.cells[column];
    if (!cell) return "";
    const text = (cell.dataset.v ?? cell.textContent).trim();
    const number = Number(text.replace(/,/g, ""));
    return text !== "" && Number.isFinite(number) ? number : text.toLowerCase();
  }
  function sort(table, column, ascending) {
    const body = table.tBodies[0];
    const ranked = [...body.rows].map((row, at) => [valueOf(row, column), at, row]);
    ranked.sort(([one, first], [other, second]) => {
      if ((one === "") !== (other === "")) return one === "" ? 1 : -1;  // what is empty stands last
      const order = typeof one === typeof other ? (typeof one === "number" ? one - other : one.localeCompare(other)) : typeof one === "number" ? -1 : 1;
      return (ascending ? order : -order) || first - second;
    });
    body.append(...ranked.map(([, , row]) => row));
    all("thead th", table).forEach((head, at) => at === column ? head.setAttribute("aria-sort", ascending ? "ascending" : "descending") : head.removeAttribute("aria-sort"));
  }
  const titleOf = (table) => table.caption?.textContent ?? "";
  function prepare() {
    for (const table of all("table[data-sortable]")) {
      all("thead th", table).forEach((head, column) => {
        if (!head.textContent.trim() || find(".sort", head)) return;
        const button = document.createElement("button");
        button.type = "button";
        button.className = "sort";
        button.append(...head.childNodes);
        button.addEventListener("click", () => {
          const ascending = head.getAttribute("aria-sort") !== "ascending";
          sorts.set(titleOf(table), [column, ascending]);
          sort(table, column, ascending);
        });
        head.append(button);
      });
      const wanted = sorts.get(titleOf(table));
      if (wanted) sort(table, ...wanted);
    }
    for (const table of all("table[data-rows]")) for (const row of table.tBodies[0].rows) row.tabIndex = -1;
    const first = find("table[data-rows] tbody tr");
    if (first) first.tabIndex = 0;
    for (const box of all("input[type=checkbox][name=run]")) box.closest("tr").classList.toggle("picked", box.checked);
    const filter = find("[data-filter]");
    if (filter) { filter.value = kept.get(location.pathname) ?? filter.value; narrow(filter); }
  }
  function narrow(filter) {
    kept.set(location.pathname, filter.value);
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const table = find("table[data-sortable]", filter.closest("section") ?? document);
    for (const row of table?.tBodies[0].rows ?? []) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  }

  // The page of now in place of the page of before: what a person has chosen, written and opened stays
  async function fetched(address, options) {
    const answer = await fetch(address, { headers: { accept: "text/html" }, ...options });
    if (!answer.headers.get("content-type")?.startsWith("text/html")) throw new Error(`${answer.status}`);
    return [new DOMParser().parseFromString(await answer.text(), "text/html"), answer];
  }
  function put(fresh, whole = true) {  // or of what is written only what is being written
    const page = find("#page"), then = find("#page", fresh);
    if (!then) return location.reload();
    const held = document.activeElement, place = held?.id, row = held?.closest?.("tr"), rowAt = row ? rows().indexOf(row) : -1;
    const caret = held?.matches?.("input[type=text],input[type=search]") ? held.selectionStart : null;
    const checked = new Set(all("input[type=checkbox]:checked", page).map((box) => box.id));
    const written = new Map(all("input[type=text],input[type=search],select", page).filter((each) => each.id && (whole || each === held)).map((each) => [each.id, each.value]));
    const opened = new Set(all("details[open]", page).map((each) => each.id));
    const across = all(".scroll", page).map((each) => each.scrollLeft), said = whole && find(".said", page);
    page.replaceChildren(...then.childNodes);
    if (said && !find(".said", page)) page.prepend(said);
    for (const id of checked) { const box = document.getElementById(id); if (box) box.checked = true; }
    for (const [id, value] of written) { const field = document.getElementById(id); if (field) field.value = value; }
    for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
    all(".scroll", page).forEach((each, at) => { each.scrollLeft = across[at] ?? 0; });
    const side = find(".side nav"), menu = find(".side nav", fresh);
    if (side.innerHTML !== menu.innerHTML) side.replaceChildren(...menu.childNodes);
    const frame = find("#frame"), framed = find("#frame", fresh);
    if (frame.innerHTML !== framed.innerHTML) frame.replaceChildren(...framed.childNodes);  // an untouched notebook is not loaded again
    document.title = fresh.title;
    prepare();
    const again = place && document.getElementById(place);
    if (again) { again.focus({ preventScroll: true }); if (caret !== null) again.setSelectionRange?.(caret, caret); }
    else if (rowAt >= 0) rows()[Math.min(rowAt, rows().length - 1)]?.focus({ preventScroll: true });
  }
  // Nothing moves under a hand that is about to decide: while one is in a form that acts, what has changed waits
  const isHeld = () => Boolean(document.activeElement?.closest?.("form.act") || find("form.act:hover"));
  let moved = -Infinity;
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("form.act button");
    if (!button || !event.isTrusted || !event.detail || performance.now() - moved > 700) return;  // a key presses what has the focus
    event.preventDefault();
    find("#told").textContent = "The page has just changed. Look, and press again.";
  }, true);
  let mark = document.body.dataset.mark, shown = "";
  const bare = (text) => text.replace(/<p class="said".*?<\/p>/s, "");
  async function refresh() {
    const [fresh] = await fetched(location.href);
    const text = bare(find("#page", fresh)?.innerHTML ?? "");
    if (text === shown && find(".side nav", fresh).innerHTML === find(".side nav").innerHTML) return true;
    if (isHeld()) return false;
    shown = text;
    put(fresh);
    moved = performance.now();
    find("#page").classList.remove("fresh");
    void find("#page").offsetWidth;
    find("#page").classList.add("fresh");
    find("#told").textContent = "The page has been updated.";
    return true;
  }
  function say(state, text) { const live = find("#live"); live.className = `dim ${state}`; live.textContent = text; }
  const clock = () => new Date().toISOString().slice(11, 16);
  async function look() {
    if (!document.hidden) try {
      const answer = await fetch("/mark");
      if (answer.status === 401) return say("off", "n2p ui was started anew: open the address that it printed");
      const now = (await answer.json()).mark;
      if (now !== mark && !isHeld() && await refresh()) { mark = now; say("on", `live · changed ${clock()} UTC`); }
      else if (now !== mark) say("on", "changed · shown when you leave the form");
      else if (!find("#live").classList.contains("on")) say("on", "live");
    } catch { say("off", "n2p ui has stopped"); }
    setTimeout(look, EVERY);
  }

  // Links that stay on the page (sort, page, status) and searches need no reload
  async function go(address, push = true) {
    try {
      const [fresh] = await fetched(address);
      if (push) history.pushState(null, "", address);
      shown = bare(find("#page", fresh).innerHTML);
      put(fresh, false);
    } catch { location.href = address; }
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button || link.target || !link.closest("#page")) return;
    if (link.origin === location.origin && link.pathname === location.pathname && link.search !== location.search && !link.search.includes("whole")) {
      event.preventDefault();
      const of = link.closest("th") ? link.textContent : "";
      go(link.href).then(() => of && all("thead a.sort").find((each) => each.textContent === of)?.focus());
    }
  });
  addEventListener("popstate", () => go(location.href, false));
  let waiting = 0;
  document.addEventListener("input", (event) => {
    if (event.target.matches("[data-filter]")) narrow(event.target);
    if (event.target.matches("[data-search]")) { clearTimeout(waiting); waiting = setTimeout(() => search(event.target.form), 250); }
  });
  function search(form) { go(`${form.getAttribute("action")}?${new URLSearchParams([...new FormData(form)].filter(([, value]) => value))}`); }
  document.addEventListener("submit", (event) => {
    if (event.target.matches("[data-live]")) { event.preventDefault(); search(event.target); }
    else if (event.submitter?.value === "reject" && !event.target.elements.reason.value.trim()) {
      event.preventDefault();
      const field = event.target.elements.reason;
      field.setCustomValidity("A rejection needs a reason.");
      field.reportValidity();
      field.addEventListener("input", () => field.setCustomValidity(""), { once: true });
    }
    else if (event.target.method === "post") for (const each of all("button", event.target)) setTimeout(() => { each.disabled = true; });  // once
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
    if (event.target.matches("input[type=checkbox][name=run]")) event.target.closest("tr").classList.toggle("picked", event.target.checked);
  });

  // Keys
  const rows = () => all("table[data-rows] tbody tr").filter((row) => !row.hidden && row.cells.length);
  function step(by) {
    const list = rows(), at = list.indexOf(document.activeElement?.closest?.("tr"));
    const next = list[Math.max(0, Math.min(list.length - 1, at < 0 ? (by > 0 ? 0 : list.length - 1) : at + by))];
    if (!next) return;
    for (const each of list) each.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }
  let before = "";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const at = event.target, writing = at.matches?.("input:not([type=checkbox]),select,textarea"), key = event.key, dialog = find("#keys");
    if (key === "Escape") {
      if (dialog.open) return;
      if (writing) { if (at.value && at.type === "search") { at.value = ""; at.dispatchEvent(new Event("input", { bubbles: true })); } else at.blur(); }
      else at.blur?.();
      return;
    }
    if (writing) { if (key === "ArrowDown" && at.type === "search") { event.preventDefault(); step(1); } return; }
    if (dialog.open) return;
    const chord = before; before = "";
    const row = at.closest?.("table[data-rows] tbody tr");
    const done = {
      "/": () => { const field = find("[data-search],[data-filter]"); field?.focus(); field?.select(); },
      "j": () => step(1), "k": () => step(-1),
      "ArrowDown": () => row ? step(1) : false, "ArrowUp": () => row ? step(-1) : false,
      "Enter": () => row && at === row ? find("th a, td a", row)?.click() : false,
      "x": () => { const box = row && find("input[type=checkbox]:not(:disabled)", row); if (box) { box.checked = !box.checked; row.classList.toggle("picked", box.checked); } },
      "c": () => find("#compare") ? find("#compare").requestSubmit() : false,
      "t": turn, "?": () => dialog.showModal(), "g": () => { before = "g"; },
    }[key];
    if (chord === "g" && /^[1-9]$/.test(key)) { all(".side nav a")[Number(key) - 1]?.click(); event.preventDefault(); return; }
    if (done && done() !== false) event.preventDefault();
  });

  find("#theme").hidden = find("#keys-button").hidden = false;
  find("#theme").addEventListener("click", turn);
  find("#keys-button").addEventListener("click", () => find("#keys").showModal());
  system.addEventListener("change", nameTheme);
  nameTheme();
  shown = bare(find("#page").innerHTML);
  const here = new URL(location.href);
  if (here.searchParams.has("said")) { here.searchParams.delete("said"); history.replaceState(null, "", here); }  // said once
  prepare();
  setTimeout(look, EVERY / 4);
})();
