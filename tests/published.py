"""Notebooks in the style in which people publish them: each runs, and gives the same when it is run again, so the checker has no error to find."""

NOTEBOOKS: dict[str, list[str]] = {
    "titanic": [
        """# The usual first cell
import numpy as np # linear algebra
import pandas as pd # data processing
import os
for dirname, _, filenames in os.walk('.'):
    for filename in filenames[:1]:
        print(os.path.join(dirname, filename)[:1])""",
        """%matplotlib inline
import matplotlib.pyplot as plt
try:
    import seaborn as sns
    sns.set_style('whitegrid')
except ImportError:
    sns = None""",
        """rng = np.random.default_rng(42)
n = 300
train_df = pd.DataFrame({'Age': rng.normal(30, 9, n).round(), 'Sex': rng.choice(['male', 'female'], n), 'Fare': rng.gamma(2, 10, n), 'Name': ['Mr. X' if i % 2 else 'Mrs. Y' for i in range(n)], 'Survived': rng.integers(0, 2, n)})
test_df = train_df.iloc[250:].drop('Survived', axis=1)
train_df.head()""",
        r"""combine = [train_df, test_df]
for dataset in combine:
    dataset['Title'] = dataset.Name.str.extract(r' ([A-Za-z]+)\.', expand=False).fillna('Mr')
title_mapping = {'Mr': 1, 'Miss': 2, 'Mrs': 3}
for dataset in combine:
    dataset['Title'] = dataset['Title'].map(title_mapping)
    dataset['Title'] = dataset['Title'].fillna(0)""",
        """guess_ages = np.zeros((2,3))
for i in range(0, 2):
    for j in range(0, 3):
        guess_df = train_df[(train_df['Sex'] == ('male' if i else 'female'))]['Age'].dropna()
        guess_ages[i,j] = int(guess_df.median()/0.5 + 0.5) * 0.5
guess_ages""",
        """train_df['Sex'] = train_df['Sex'].map({'female': 1, 'male': 0}).astype(int)
X_train = train_df.drop(['Survived', 'Name'], axis=1)
Y_train = train_df['Survived']
X_train.shape, Y_train.shape""",
        """from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
random_forest = RandomForestClassifier(n_estimators=10, random_state=1)
random_forest.fit(X_train, Y_train)
acc_random_forest = round(random_forest.score(X_train, Y_train) * 100, 2)
logreg = LogisticRegression(max_iter=1000).fit(X_train, Y_train)
models = pd.DataFrame({'Model': ['LR', 'RF'], 'Score': [logreg.score(X_train, Y_train), acc_random_forest]})
models.sort_values(by='Score', ascending=False)""",
    ],
    "housing": [
        """import warnings; warnings.filterwarnings('ignore')
from sklearn.datasets import make_regression
from sklearn.model_selection import KFold
from sklearn.preprocessing import *
from sklearn.linear_model import *
from sklearn.pipeline import Pipeline, make_pipeline
import numpy as np, pandas as pd""",
        """class CFG:
    seed = 2021
    n_fold = 3
    debug: bool = True
    params = {'alpha': 0.1, 'max_iter': 500 if debug else 1000}
    cols = [f'f{i}' for i in range(5)]

def seed_everything(seed=CFG.seed):
    import random, os
    random.seed(seed)
    os.environ['PYTHONHASHSEED'] = str(seed)
    np.random.seed(seed)
seed_everything()""",
        """X, y = make_regression(n_samples=200, n_features=5, noise=3., random_state=CFG.seed)
df = pd.DataFrame(X, columns=CFG.cols).assign(target=y)
df['fold'] = -1
kf = KFold(n_splits=CFG.n_fold, shuffle=True, random_state=CFG.seed)
for fold, (tr, va) in enumerate(kf.split(df)):
    df.loc[va, 'fold'] = fold
df.fold.value_counts()""",
        """%%time
oof = np.zeros(len(df))
for fold in range(CFG.n_fold):
    trn, val = df.query('fold != @fold'), df.query('fold == @fold')
    model = make_pipeline(StandardScaler(), Lasso(**CFG.params)).fit(trn[CFG.cols], trn.target)
    oof[val.index] = model.predict(val[CFG.cols])
    print(f'{fold=} {model.score(val[CFG.cols], val["target"]):.3f}')
    del trn, val; import gc; _ = gc.collect()""",
        """noise = np.random.randn(3)
score = ((oof - df.target) ** 2).mean() ** .5
print(f"RMSE: {score:>10.4f} {'ok' if score < 1e3 else 'bad'}")
_""",
    ],
    "text": [
        """import re, string
from collections import Counter, defaultdict
from functools import lru_cache, partial, reduce
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer, CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.metrics import classification_report, confusion_matrix""",
        r"""@lru_cache(maxsize=None)
def clean(text: str) -> str:
    def sub(pattern: str, by: str = ' ') -> str:
        nonlocal text
        text = re.sub(pattern, by, text)
        return text
    sub(r'https?://\S+'); sub(r'[^a-z ]', '')
    return ' '.join(w for w in text.split() if (s := w.strip()) and len(s) > 1)""",
        """docs = ['Free money http://spam.me now', 'see you at lunch', 'win a free prize', 'meeting at noon today'] * 10
labels = [1, 0, 1, 0] * 10
counts = Counter(w for d in docs for w in clean(d.lower()).split())
counts.most_common(3)""",
        """vec = TfidfVectorizer(preprocessor=lambda d: clean(d.lower()), ngram_range=(1, 2))
X = vec.fit_transform(docs)
split = int(.75 * X.shape[0])
clf = MultinomialNB().fit(X[:split], labels[:split])
print(classification_report(labels[split:], clf.predict(X[split:])))""",
        """index = defaultdict(list)
for i, d in enumerate(docs[:4]):
    for w in {*d.split()}:
        index[w].append(i)
{k: v for k, v in sorted(index.items(), key=lambda kv: (-len(kv[1]), kv[0]))[:3]}""",
    ],
    "geron": [
        """import sys
assert sys.version_info >= (3, 7)
IS_COLAB = 'google.colab' in sys.modules
IS_KAGGLE = 'kaggle_secrets' in sys.modules
if IS_COLAB:
    %pip install -q -U tensorflow-addons
if IS_KAGGLE:
    from kaggle_secrets import UserSecretsClient
    key = UserSecretsClient().get_secret('x')""",
        """from pathlib import Path
IMAGES_PATH = Path() / 'images' / 'end_to_end'

def save_fig(fig_id, tight_layout=True, fig_extension='png', resolution=30):
    path = IMAGES_PATH / f'{fig_id}.{fig_extension}'
    if tight_layout:
        plt.tight_layout()
    return path""",
        """import numpy as np
import matplotlib.pyplot as plt
plt.rc('font', size=14)
np.random.seed(42)
m = 100
X = 2 * np.random.rand(m, 1)
y = 4 + 3 * X + np.random.randn(m, 1)
plt.plot(X, y, 'b.')
save_fig('generated_data_plot')
plt.show()""",
        """from sklearn.linear_model import SGDRegressor, LinearRegression
from sklearn.tree import DecisionTreeRegressor
lin_reg = LinearRegression()
lin_reg.fit(X, y)
lin_reg.intercept_, lin_reg.coef_
sgd_reg = SGDRegressor(max_iter=1000, tol=1e-5, penalty=None, eta0=0.01, random_state=42)
sgd_reg.fit(X, y.ravel())""",
        """theta_path_sgd = []
def learning_schedule(t, t0=5, t1=50): return t0 / (t + t1)
theta = np.random.randn(2, 1)
X_b = np.c_[np.ones((m, 1)), X]
for epoch in range(2):
    for iteration in range(m):
        if epoch == 0 and iteration < 20:
            y_predict = X_b @ theta
            color = 'b-' if iteration > 0 else 'r--'
            plt.plot(X, y_predict, color)
        random_index = np.random.randint(m)
        xi, yi = X_b[random_index:random_index + 1], y[random_index:random_index + 1]
        gradients = 2 * xi.T @ (xi @ theta - yi)
        theta -= learning_schedule(epoch * m + iteration) * gradients
        theta_path_sgd.append(theta.copy())
theta.shape""",
    ],
    "oop": [
        """from __future__ import annotations
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, asdict
from enum import Enum, auto
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar, overload
import numpy as np
T = TypeVar('T', bound='Model')""",
        """class Kind(Enum):
    A = auto()
    B = auto()
    @property
    def label(self): return self.name.lower()

class Point(NamedTuple):
    x: float
    y: float = 0.
    def norm(self) -> float: return (self.x ** 2 + self.y ** 2) ** .5""",
        """@dataclass(frozen=True)
class Config:
    kinds: tuple[Kind, ...] = (Kind.A, Kind.B)
    opts: dict[str, Later] = field(default_factory=dict)
    N: ClassVar[int] = 3
    @classmethod
    def make(cls, **kw) -> Config: return cls(**kw)
class Later: ...""",
        """class Base(ABC):
    registry: dict[str, type] = {}
    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        Base.registry[cls.__name__] = cls
    @abstractmethod
    def fit(self, X): ...
    def __enter__(self): return self
    def __exit__(self, *exc): return False
class Mean(Base):
    def fit(self, X):
        self.mean_ = np.mean(X)
        return self
with Mean() as m, Mean() as m2:
    print(m.fit([1, 2, 3]).mean_, m2)""",
        """match Point(1, 2), Config.make():
    case Point(x=1, y=yy), Config(kinds=(Kind.A, *rest)) if rest:
        print(yy, rest)
    case (a, b) | [a, b]:
        print(a, b)
    case {'k': v, **kw}: print(v, kw)
    case str() as s: print(s)
    case _: pass
[k.label for k in Kind], {c for c in Base.registry}""",
    ],
    "async": [
        """import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress, ExitStack""",
        """async def work(n):
    await asyncio.sleep(0)
    return n
@asynccontextmanager
async def res(name):
    yield name
async def gen(n):
    for i in range(n):
        yield i""",
        """r = await asyncio.gather(*(work(i) for i in range(3)))
async with res('a') as a, res('b') as b:
    print(a, b, r)
async for g in gen(2):
    print(g)
out = [x async for x in gen(3) if x]
vals = {k: await work(k) for k in range(2)}
print(out, vals, g)""",
        """with suppress(NameError):
    del undefined_thing
with ExitStack() as stack:
    tasks = [stack.enter_context(contextmanager(lambda: iter([1]))()) for _ in range(2)]
tasks""",
    ],
    "eda": [
        """import pandas as pd, numpy as np
from IPython.display import display, HTML, Markdown, clear_output
pd.set_option('display.max_columns', None)
pd.options.mode.copy_on_write = True""",
        """rs = np.random.RandomState(0)
df = pd.DataFrame({'g': list('aabbc') * 20, 'v': rs.rand(100), 'd': pd.date_range('2020', periods=100, freq='h', tz='UTC')})
display(df.head(), df.describe(include='all'))
df?""",
        """(df
 .assign(log=lambda d: np.log1p(d['v']), hour=lambda d: d.d.dt.hour)
 .loc[lambda d: d.v.between(.1, .9)]
 .groupby(['g', pd.Grouper(key='d', freq='D')], observed=True)
 .agg(mean=('v', 'mean'), n=('v', 'size'), rng=('v', lambda s: s.max() - s.min()))
 .reset_index()
 .pipe(lambda d: d.sort_values('mean'))
 .rename(columns=str.upper)
 .head(3))""",
        """def missing(d, cols=None, *, thresh: float = .5, **kw):
    cols = cols if cols is not None else d.columns
    return {c: m for c in cols if (m := d[c].isna().mean()) < thresh}
missing(df), df.sample(3, random_state=1).index.tolist()""",
        """for name, group in df.groupby('g'):
    if len(group) < 30: continue
    summary = f"{name!s:<5}|{group['v'].mean():{'8.3f'}}|{'x' * (n := len(group) // 20)}"
    print(summary, n)
else:
    print('done', name)""",
        """!echo $HOME > /dev/null
files = !ls
len(files) >= 0
%timeit -n1 -r1 df.v.sum()
%who_ls""",
        """pd.DataFrame.merge??""",
        """ls""",
        """pwd""",
    ],
    "globals": [
        """counter = 0
cache = {}
def inc(by=1):
    global counter, last
    counter += by
    last = counter
    return counter
inc(); inc(2)
print(counter, last)""",
        """if 'state' not in globals():
    state = []
state.append(1)
try:
    model_cache
except NameError:
    model_cache = {}
locals()['dyn'] = 3
print(len(model_cache), dyn)""",
        """a = b = [1, 2, 3]
a, *mid, b = a
(x, (y, z)), w = (1, (2, 3)), 4
first, = [9]
d = dict(zip('abc', range(3)))
d |= {'z': 1}
print(a, mid, b, x, y, z, w, first, d)
del a, mid, d['a']""",
        """sq = [lambda v, p=p: v ** p for p in range(3)]
compose = lambda *fs: (lambda v: __import__('functools').reduce(lambda acc, f: f(acc), fs, v))
print(compose(*sq)(3), (lambda: counter)())
fib = lambda k: k if k < 2 else fib(k - 1) + fib(k - 2)
fib(7)""",
        """def outer():
    total = 0
    def add(n):
        nonlocal total
        total += n
        return later_defined(total)
    return add
add = outer()
def later_defined(v): return v
add(3)""",
        """try:
    1 / 0
except (ZeroDivisionError, ValueError) as exc:
    msg = str(exc)
else:
    msg = 'none'
finally:
    done = True
msg, done""",
        """import json as js, os.path as osp
from os import path, sep as separator
print(js.dumps({'p': osp.join('a', 'b') == path.join('a', 'b')}), separator)
assert (lambda **k: k)(**{'a': 1}) == {'a': 1}; x: int = 3; y: 'Undefined' = 4""",
    ],
    "search": [
        """import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.datasets import load_breast_cancer, make_classification
from sklearn.ensemble import GradientBoostingClassifier, VotingClassifier, StackingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, StratifiedKFold, cross_val_score, cross_validate, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from scipy.stats import loguniform, randint""",
        """SEED = 0
rng = np.random.RandomState(SEED)
X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X.iloc[:200], y[:200], test_size=.3, stratify=y[:200], random_state=rng)""",
        """num = Pipeline([('imp', SimpleImputer()), ('log', FunctionTransformer(np.log1p)), ('sc', StandardScaler())])
pre = ColumnTransformer([('n', num, make_column_selector(dtype_include=np.number))], remainder='passthrough')
pipe = Pipeline([('pre', pre), ('clf', LogisticRegression(max_iter=500))])
grid = GridSearchCV(pipe, {'clf__C': np.logspace(-2, 1, 2)}, cv=StratifiedKFold(n_splits=3, shuffle=True, random_state=SEED), n_jobs=1).fit(X_train, y_train)
round(grid.best_score_, 3)""",
        """rs = RandomizedSearchCV(SVC(), {'C': loguniform(1e-2, 1e2), 'gamma': ['scale', 'auto']}, n_iter=3, cv=3, random_state=SEED).fit(X_train, y_train)
scores = {n: cross_val_score(m, X_train, y_train, cv=3).mean() for n, m in {'knn': KNeighborsClassifier(), 'vote': VotingClassifier([('lr', pipe), ('svc', SVC())])}.items()}
pd.Series(scores).round(3)""",
        """estimators = [('gb', GradientBoostingClassifier(n_estimators=5, random_state=rng)), ('knn', KNeighborsClassifier())]
stack = StackingClassifier(estimators, cv=3).fit(X_train, y_train)
stack.score(X_test, y_test) > .5""",
    ],
    "ifmain": [
        """#!/usr/bin/env python
# coding: utf-8
import argparse, logging
from types import SimpleNamespace
logging.basicConfig(level='INFO')
logger = logging.getLogger(__name__)""",
        """parser = argparse.ArgumentParser()
parser.add_argument('--lr', type=float, default=.1)
args = parser.parse_args([]) if hasattr(__builtins__, '__IPYTHON__') or 'get_ipython' in globals() else parser.parse_args()
args.lr""",
        """def main(cfg=None):
    cfg = cfg or SimpleNamespace(**vars(args))
    data = load(cfg)
    return train(data, cfg)

def load(cfg): return [cfg.lr] * N_ROWS
def train(data, cfg): return sum(data) / len(data)
N_ROWS = 3
if __name__ == '__main__':
    result = main()
    print(result)""",
        """class Timer:
    def __enter__(self):
        from time import perf_counter
        self.start = perf_counter(); return self
    def __exit__(self, *a): self.stop = 1
with Timer() as t: result += 1
result > 1, isinstance(t, Timer)""",
    ],
    "writefile": [
        """%%writefile helpers_of_this_cell.py
import math
def area(r): return math.pi * r ** 2""",
        """import sys; sys.path.insert(0, '.')
from helpers_of_this_cell import area
from math import *
area(1) == pi""",
        """%%capture cap --no-stderr
print('hidden')""",
        """cap.stdout, floor(e)""",
        """%%bash --out output
echo hi""",
        """output""",
        """%%html
<b>x</b>""",
        """%%script bash
echo $undefined_var""",
        """import importlib, helpers_of_this_cell
importlib.reload(helpers_of_this_cell);""",
        """%config InlineBackend.figure_format = 'retina'
%env FOO_ZZ=1
%load_ext autoreload
%autoreload 2
%precision 3
x = %env FOO_ZZ
x""",
        """%rm helpers_of_this_cell.py""",
    ],
    "torchless": [
        """import random
import numpy as np
try:
    import no_such_torch as torch
    HAS_TORCH = True
except ImportError:
    torch = None
    HAS_TORCH = False""",
        """def set_seed(seed: int = 42) -> None:
    random.seed(seed)
    np.random.seed(seed)
    if HAS_TORCH:
        torch.manual_seed(seed)
        torch.cuda.manual_seed_all(seed)
set_seed()
device = torch.device('cuda' if torch.cuda.is_available() else 'cpu') if HAS_TORCH else None""",
        """class Net:
    def __init__(self, sizes=(3, 4, 1)):
        self.w = [np.random.randn(i, o) * np.sqrt(2 / i) for i, o in zip(sizes, sizes[1:])]
    def __call__(self, x):
        for i, w in enumerate(self.w):
            x = x @ w
            if i < len(self.w) - 1: x = np.maximum(x, 0)
        return x
net = Net()
X = np.random.rand(10, 3)
losses = []
for epoch in range(3):
    order = np.random.permutation(len(X))
    for s in range(0, len(X), 5):
        batch = X[order[s:s + 5]]
        losses.append(float((net(batch) ** 2).mean()))
best = min(losses); best >= 0""",
        """sample = random.sample(range(10), 3)
random.shuffle(sample)
sample""",
    ],
    "sklearn_docs": [
        """# How many clusters?
from sklearn.datasets import make_blobs

centers = [(-5, -5), (0, 0), (5, 5)]
X, y = make_blobs(n_samples=60, centers=centers, shuffle=False, random_state=42)

y[: len(X) // 2] = 0
y[len(X) // 2 :] = 1""",
        """import matplotlib.pyplot as plt
import numpy as np
from matplotlib import cm
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_samples, silhouette_score
from sklearn.mixture import GaussianMixture
range_n_clusters = [2, 3]
for n_clusters in range_n_clusters:
    fig, (ax1, ax2) = plt.subplots(1, 2)
    clusterer = KMeans(n_clusters=n_clusters, random_state=10)
    cluster_labels = clusterer.fit_predict(X)
    silhouette_avg = silhouette_score(X, cluster_labels)
    sample_silhouette_values = silhouette_samples(X, cluster_labels)
    y_lower = 10
    for i in range(n_clusters):
        ith = sample_silhouette_values[cluster_labels == i]
        ith.sort()
        y_upper = y_lower + ith.shape[0]
        color = cm.nipy_spectral(float(i) / n_clusters)
        ax1.fill_betweenx(np.arange(y_lower, y_upper), 0, ith, facecolor=color)
        y_lower = y_upper + 10
    for i, c in enumerate(clusterer.cluster_centers_):
        ax2.scatter(c[0], c[1], marker='$%d$' % i)
plt.close('all')
round(silhouette_avg, 2)""",
        """gmm = GaussianMixture(n_components=2, random_state=0).fit(X)
Xs, ys = gmm.sample(5)
Xs.shape""",
        """rng = np.random.RandomState(0)
from sklearn.inspection import permutation_importance
from sklearn.linear_model import Ridge
permutation_importance(Ridge().fit(X, y), X, y, n_repeats=2, random_state=rng).importances_mean.shape""",
    ],
}
