"""What users' functions read from outside, for `fuzz_steps.py`: places of values, and what is done with them.

In all lines here `$` stands for the number of a piece, INITIAL and NEW for the value of a place before and
after a change, READ for the expression that reads it. `call` is the number of the call, `h` a tensor of shape
(batch, D), FT the float type of the program.
"""

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Piece:
    """Lines of a program that make another `h` of the same shape.

    setup: run once.  change: run before each call.  body: where the program uses it.
    layer: a layer whose parameters and state are those of the model, by the name of the piece.
    """

    name: str
    body: str
    setup: str = ""
    change: str = ""
    layer: str = ""

    def numbered(self, number):
        """Return the piece with its number in the place of `$`."""
        parts = (self.body, self.setup, self.change, self.layer)
        body, setup, change, layer = (re.sub(r"\$", str(number), p) for p in parts)
        return replace(self, body=body, setup=setup, change=change, layer=layer)


#: name -> (setup, change, read): places of any value.
PLACES = {
    "global": ("a$ = INITIAL", "a$ = NEW", "a$"),
    "globals()": ("a$ = INITIAL", "globals()['a$'] = NEW", "globals()['a$']"),
    "class attribute": ("class C$:\n    a = INITIAL", "C$.a = NEW", "C$.a"),
    "inherited": ("class B$:\n    a = INITIAL\nclass C$(B$):\n    pass", "B$.a = NEW", "C$.a"),
    "nested class": ("class C$:\n    class Inner:\n        a = INITIAL", "C$.Inner.a = NEW", "C$.Inner.a"),
    "attribute": ("c$ = types.SimpleNamespace(a=INITIAL)", "c$.a = NEW", "c$.a"),
    "getattr": ("c$ = types.SimpleNamespace(a=INITIAL)", "setattr(c$, 'a', NEW)", "getattr(c$, 'a')"),
    "vars": ("c$ = types.SimpleNamespace(a=INITIAL)", "vars(c$)['a'] = NEW", "vars(c$)['a']"),
    "deep": ("c$ = types.SimpleNamespace(b={'a': [INITIAL]})", "c$.b['a'][0] = NEW", "c$.b['a'][0]"),
    "slots": ("class C$:\n    __slots__ = ('a',)\nc$ = C$()\nc$.a = INITIAL", "c$.a = NEW", "c$.a"),
    "property": (
        "class C$:\n    @property\n    def a(self):\n        return self.b\nc$ = C$()\nc$.b = INITIAL",
        "c$.b = NEW",
        "c$.a",
    ),
    "descriptor": (
        "box$ = [INITIAL]\nclass D$:\n    def __get__(self, owner, kind):\n        return box$[0]\n"
        "class C$:\n    a = D$()",
        "box$[0] = NEW",
        "C$.a",
    ),
    "method": (
        "class C$:\n    def get(self):\n        return self.a\nc$ = C$()\nc$.a = INITIAL",
        "c$.a = NEW",
        "c$.get()",
    ),
    "__call__": (
        "class C$:\n    def __call__(self):\n        return self.a\nc$ = C$()\nc$.a = INITIAL",
        "c$.a = NEW",
        "c$()",
    ),
    "__getattr__": (
        "box$ = {'a': INITIAL}\nclass C$:\n    def __getattr__(self, name):\n        if name not in box$:\n"
        "            raise AttributeError(name)\n        return box$[name]\nc$ = C$()",
        "box$['a'] = NEW",
        "c$.a",
    ),
    "careless __getattr__": (
        "box$ = {'a': INITIAL}\nclass C$:\n    def __getattr__(self, name):\n        return box$[name]\n"
        "c$ = C$()",
        "box$['a'] = NEW",
        "c$.a",
    ),
    "cached_property": (
        "box$ = [INITIAL]\nclass C$:\n    @functools.cached_property\n    def a(self):\n"
        "        return box$[0]\nc$ = C$()",
        "box$[0] = NEW\nvars(c$).pop('a', None)",
        "c$.a",
    ),
    "namedtuple": (
        "P$ = collections.namedtuple('P$', 'a')\np$ = P$(INITIAL)",
        "p$ = p$._replace(a=NEW)",
        "p$.a",
    ),
    "property of a tuple": (
        "box$ = [INITIAL]\nclass P$(collections.namedtuple('Q$', 'b')):\n    @property\n    def a(self):\n"
        "        return box$[0]\np$ = P$(1)",
        "box$[0] = NEW",
        "p$.a",
    ),
    "dataclass": (
        "@dataclasses.dataclass\nclass P$:\n    a: object = None\np$ = P$(INITIAL)",
        "p$.a = NEW",
        "p$.a",
    ),
    "dict": ("d$ = {'a': INITIAL}", "d$['a'] = NEW", "d$['a']"),
    "dict.get": ("d$ = {'a': INITIAL}\nget$ = d$.get", "d$['a'] = NEW", "get$('a')"),
    "dict view": ("d$ = {'a': INITIAL}\nv$ = d$.values()", "d$['a'] = NEW", "next(iter(v$))"),
    "mapping proxy": ("d$ = {'a': INITIAL}\nv$ = types.MappingProxyType(d$)", "d$['a'] = NEW", "v$['a']"),
    "dict subclass": ("class M$(dict):\n    a = None\nd$ = M$()\nd$.a = INITIAL", "d$.a = NEW", "d$.a"),
    "list": ("l$ = [INITIAL, 2]", "l$[0] = NEW", "l$[0]"),
    "list in a tuple": ("l$ = ([INITIAL],)", "l$[0][0] = NEW", "l$[0][0]"),
    "deque": ("l$ = collections.deque([INITIAL])", "l$[0] = NEW", "l$[0]"),
    "itemgetter": ("l$ = [INITIAL]\nget$ = operator.itemgetter(0)", "l$[0] = NEW", "get$(l$)"),
    "function attribute": ("def f$():\n    pass\nf$.a = INITIAL", "f$.a = NEW", "f$.a"),
    "module": ("m$ = types.ModuleType('m$')\nm$.a = INITIAL", "m$.a = NEW", "m$.a"),
    "submodule": (
        "m$ = types.ModuleType('m$')\nm$.sub = types.ModuleType('m$.sub')\nm$.sub.a = INITIAL",
        "m$.sub.a = NEW",
        "m$.sub.a",
    ),
    "imported": (
        "m$ = sys.modules['fuzzed_$'] = types.ModuleType('fuzzed_$')\nm$.a = INITIAL",
        "m$.a = NEW",
        "importlib.import_module('fuzzed_$').a",
    ),
    "module __getattr__": (
        "m$, box$ = types.ModuleType('m$'), {'a': INITIAL}\nm$.__getattr__ = lambda name: box$[name]",
        "box$['a'] = NEW",
        "m$.a",
    ),
    "closure": (
        "def make$():\n    a = INITIAL\n    def get():\n        return a\n    def put(value):\n"
        "        nonlocal a\n        a = value\n    return get, put\nget$, put$ = make$()",
        "put$(NEW)",
        "get$()",
    ),
    "default": ("def f$(a=INITIAL):\n    return a", "f$.__defaults__ = (NEW,)", "f$()"),
    "list as default": ("def f$(a=[INITIAL]):\n    return a[0]", "f$.__defaults__[0][0] = NEW", "f$()"),
    "keyword default": ("def f$(*, a=INITIAL):\n    return a", "f$.__kwdefaults__['a'] = NEW", "f$()"),
    "partial": (
        "f$ = functools.partial(lambda a: a, INITIAL)",
        "f$ = functools.partial(lambda a: a, NEW)",
        "f$()",
    ),
    "new function": ("f$ = lambda: INITIAL", "f$ = lambda e=NEW: e", "f$()"),
    "lru_cache": (
        "box$ = [INITIAL]\n@functools.lru_cache\ndef f$(n):\n    return box$[n]",
        "box$[0] = NEW\nf$.cache_clear()",
        "f$(0)",
    ),
    "context variable": (
        "v$ = contextvars.ContextVar('v$')\nv$.set(INITIAL)",
        "v$.set(NEW)",
        "v$.get()",
    ),
    "weak reference": (
        "class C$:\n    pass\nc$ = C$()\nc$.a = INITIAL\nr$ = weakref.ref(c$)",
        "c$.a = NEW",
        "r$().a",
    ),
    "thread local": ("t$ = threading.local()\nt$.a = INITIAL", "t$.a = NEW", "t$.a"),
}

#: name -> (setup, change, read): places of numbers alone; with no `change`, reading changes them.
NUMBER_PLACES = {
    "element": ("w$ = np.array([1.0, 2.0])", "w$[0] = NEW", "float(w$[0])"),
    "sum of an array": ("w$ = np.array([0.5, 0.25], FT)", "w$[0] = NEW", "w$.sum()"),
    "array of shape ()": ("w$ = np.array(1.0, FT)", "w$[...] = NEW", "w$"),
    "object array": ("w$ = np.array([1.0, None], object)", "w$[0] = NEW", "w$[0]"),
    "array.array": ("w$ = array.array('d', [1.0])", "w$[0] = NEW", "w$[0]"),
    "string": ("s$ = '1.0'", "s$ = str(float(NEW))", "float(s$)"),
    "range": ("r$ = range(2)", "r$ = range(1 + int(2 * abs(NEW)))", "0.3 * len(r$)"),
    "set": ("s$ = {1.0}", "s$ = {float(NEW)}", "max(s$)"),
    "fraction": ("q$ = fractions.Fraction(1)", "q$ = fractions.Fraction(float(NEW))", "float(q$)"),
    "iterator": ("i$ = itertools.count(1)", "", "0.1 * next(i$)"),
    "generator": ("g$ = (0.5 + 0.1 * n for n in itertools.count())", "", "next(g$)"),
    "list that gets shorter": ("l$ = [0.5 + 0.01 * n for n in range(500)]", "", "l$.pop()"),
    "random": ("", "", "random.uniform(0.5, 1.5)"),
    "rare random": ("", "", "(0.5 if random.random() < 0.2 else 1.0)"),
    "NumPy's random": ("g$ = np.random.default_rng(7)", "", "float(g$.random())"),
    "counter": (
        "class C$:\n    n = 0\n    def tick(self):\n        self.n += 1\n        return 0.1 * self.n\n"
        "c$ = C$()",
        "",
        "c$.tick()",
    ),
    "class counter": (
        "class C$:\n    n = 0\ndef tick$():\n    C$.n += 1\n    return 0.1 * C$.n",
        "",
        "tick$()",
    ),
    "global counter": (
        "n$ = 0\ndef tick$():\n    global n$\n    n$ += 1\n    return 0.1 * n$",
        "",
        "tick$()",
    ),
    "list that grows": ("l$ = []\ndef tick$():\n    l$.append(1)\n    return 0.1 * len(l$)", "", "tick$()"),
}

#: What numbers become; `call` counts from 0 to 5.
NUMBERS = [
    "0.5 + 0.25 * call",
    "1.5 - 0.2 * call",
    "1.0 if call < 4 else 0.5",
    "1.0 if call != 3 else 1.25",
    "[1.0, 0.5][call % 2]",
    "[1.0, 1.0, 0.5][call % 3]",
    "random.uniform(0.5, 1.5)",
    "random.choice([0.5, 1.0])",
    "call % 3",
    "float(call == 4)",
    "call > 2",
    "FT(0.5 + 0.1 * call)",
    "np.int64(call % 2)",
    "(0.0, -0.0)[call % 2]",
    "1 + (call > 4)",
]

#: What is done with a number; NUMBER stands for its expression, read once.
NUMBER_USES = {
    "operand": [
        "h = h * FT(NUMBER)",
        "h = h * float(NUMBER)",
        "h = float(NUMBER) * h",
        "h = h + float(NUMBER)",
        "h = float(NUMBER) - h",
        "h = h / (1.0 + abs(float(NUMBER)))",
        "h = float(NUMBER) / (2.0 + h * h)",
        "h = tp.maximum(h, float(NUMBER))",
        "h = tp.where(h > float(NUMBER), h, 0.5 * h)",
        "h = h * float(NUMBER) + h * 0.5",
        "h = h * int(3 * NUMBER)",
        "h = h * [float(NUMBER)] * 1",
        "h = h * tp.tensor(float(NUMBER), FT)",
        "h = h + tp.tensor([float(NUMBER)] * D, FT)",
        "h = h + tp.full((D,), float(NUMBER), FT)",
        "h = h.at[0].set(float(NUMBER))",
    ],
    "metadata": [
        "a = abs(float(NUMBER)) + 0.1\nh = tp.clip(h, -a, a)",
        "h = tp.tanh(h) ** (1 + int(2 * abs(NUMBER)))",
        "h = (tp.abs(h) + 0.5) ** float(NUMBER)",
        "h = tp.fn.leaky_relu(h, float(NUMBER))",
        "h = tp.roll(h, int(2 * NUMBER), axis=1)",
        "j = int(abs(2 * NUMBER)) % D\nh = tp.concatenate([h[:, j:], h[:, :j]], axis=1)",
        "j = int(abs(2 * NUMBER)) % D\nh = h + h[:, j:].sum(axis=1, keepdims=True)",
        "h = h + tp.linspace(0.0, float(NUMBER), D).astype(FT)",
        "h = tp.fn.rms_norm(h, tp.ones(D, FT), 0.1 + abs(float(NUMBER)))",
        "h = h.reshape((-1, 1 + int(NUMBER > 0.7))).reshape(h.shape)",
        "h = h + h.sum(axis=int(NUMBER > 0.7), keepdims=True) * 0.1",
    ],
    "branch": [
        "if NUMBER > 0.7:\n    h = tp.tanh(h)\nelse:\n    h = -h",
        "h = tp.sin(h) if NUMBER > 0.7 else h",
        "for _ in range(int(2 * abs(NUMBER))):\n    h = tp.tanh(h)",
        "h = (tp.tanh, tp.sin, tp.sigmoid)[int(2 * abs(NUMBER)) % 3](h)",
        "match int(2 * abs(NUMBER)):\n    case 0:\n        h = -h\n    case 1:\n        h = tp.sin(h)",
        "n = int(3 * abs(NUMBER))\nwhile n > 0:\n    h, n = h * 0.9, n - 1",
    ],
}

#: (initial, new values, changes in place of READ, uses of READ), for things that are not numbers.
ARRAY = (
    "np.linspace(0.5, 1.5, D).astype(FT)",
    ["np.linspace(0.5, 1.5 + 0.1 * call, D).astype(FT)", "np.full(D, [1.0, 0.5][call // 3 % 2], FT)"],
    [
        "READ[...] = 0.5 + 0.1 * call",
        "READ[call % D] += FT(0.5)",
        "READ[0] = 2.0 if call >= 4 else 1.0",
        "np.multiply(READ, 0.9, out=READ)",
        "READ[:] = READ[::-1].copy()",
        "READ.fill(0.5 + 0.1 * call)",
        "READ[:] = [random.random() for _ in range(D)]",
    ],
    [
        "h = h * READ",
        "h = READ * h",
        "h = h + READ[0]",
        "h = h * float(READ[1])",
        "h = h * READ[1].item()",
        "h = h * READ.sum()",
        "h = h * READ.max()",
        "if READ.max() > 1.4:\n    h = -h",
        "h = h + tp.full(D, READ[0], FT)",
        "h = h + tp.tensor(READ)",
        "h = h * (READ * FT(2))",
        "h = h * READ[::-1]",
        "h = h + READ.reshape(1, D)",
        "h = tp.clip(h, -abs(READ[0]) - 0.1, abs(READ[1]) + 0.1)",
        "h = tp.where(READ > 1.0, h, -h)",
        "h = h[:, np.argsort(READ)]",
        "h = tp.take(h, np.argsort(READ), axis=1)",
        "h = h * np.sqrt(np.abs(READ))",
        "h = h @ np.diag(READ)",
        "h = h * READ.tolist()",
        "h = tp.roll(h, int(READ[0] * 3), axis=1)",
        "h = h.at[:, int(READ.argmax())].add(1.0)",
        "h = tp.einsum('bd,d->bd', h, READ)",
        "for number in READ:\n    h = h * float(number)",
        "h = h * READ\nREAD[...] += FT(0.25)",
        "READ[...] += FT(0.25)\nh = h + READ",
    ],
)
TENSOR = (
    "tp.tensor(np.linspace(0.5, 1.5, D), FT)",
    [
        "tp.full((D,), 0.5 + 0.1 * call, FT)",
        "tp.tensor(np.linspace(0.0, 1.0 if call < 4 else 2.0, D), FT)",
        "tp.full((2 * D,), 0.5 + 0.1 * call, FT)[D:]",
        "tp.full((1 + call % 2,), 0.5, FT)[:1]",
    ],
    [],
    [
        "h = h * READ",
        "h = h + READ.sum()",
        "h = h * READ[0]",
        "h = h * float(READ[0])",
        "h = h + READ * READ",
        "t = READ\nh = h * t + t",
        "if READ.sum() > 3.0:\n    h = -h",
        "h = tp.roll(h, int(3 * READ[0].item()), axis=1)",
        "h = h * np.asarray(READ)",
    ],
)
FUNCTION = (
    "tp.tanh",
    ["(tp.tanh, tp.sin, tp.sigmoid)[call % 3]", "tp.tanh if call < 4 else tp.fn.relu"],
    [],
    [
        "f = READ\nh = f(h)",
        "f = READ\nh = h + f(h * 0.5)",
        "h = functools.reduce(lambda a, f: f(a), [READ], h)",
    ],
)
MODE = (
    "'tanh'",
    ["('tanh', 'sin')[call % 2]", "'tanh' if call < 4 else 'sigmoid'"],
    [],
    [
        "h = getattr(tp, READ)(h)",
        "h = {'tanh': tp.tanh}.get(READ, tp.sin)(h)",
        "h = -h if READ == 'tanh' else h",
    ],
)
LAYER = (
    "tp.layer.tanh()",
    [
        "tp.layer.lambda_(lambda x: x * 2) if call % 2 else tp.layer.tanh()",
        "tp.layer.tanh() if call < 4 else tp.layer.relu()",
    ],
    [],
    ["h = READ.apply(tp.layer.Vars({}, {}, h.dtype), h)[0]"],
)
THINGS = {"array": ARRAY, "tensor": TENSOR, "function": FUNCTION, "mode": MODE, "layer": LAYER}


def number(rng):
    """Return a piece that uses a number from outside."""
    places = PLACES | NUMBER_PLACES if rng.random() < 0.6 else NUMBER_PLACES
    place = rng.choice(list(places))
    kind = rng.choice(list(NUMBER_USES))
    setup, change, read = places[place]
    new = rng.choice(NUMBERS)
    body = rng.choice(NUMBER_USES[kind]).replace("NUMBER", "number")
    body = f"number = {read}\n{body}"
    return _changed(rng, Piece(f"number, {place}, {kind}", body, *_filled(setup, change, "1.0", new)))


def thing(rng):
    """Return a piece that uses an array, a tensor, a function, a layer or a word from outside."""
    kind = rng.choice(["array"] * 4 + list(THINGS))
    initial, new, in_place, uses = THINGS[kind]
    place = rng.choice(list(PLACES))
    setup, change, read = PLACES[place]
    way = "other"
    if in_place and rng.random() < 0.7:
        way, change = "in place", rng.choice(in_place).replace("READ", read)
    setup, change = _filled(setup, change, initial, rng.choice(new))
    body = rng.choice(uses).replace("READ", read)
    return _changed(rng, Piece(f"{kind}, {place}, {way}", body, setup, change))


def _filled(setup, change, initial, new):
    return setup.replace("INITIAL", initial), change.replace("NEW", new)


def _changed(rng, piece):
    """Return the piece as it is, or with its change made inside, before or after the use."""
    way = rng.random()
    if not piece.change or way < 0.7:
        return piece
    body = f"{piece.change}\n{piece.body}" if way < 0.85 else f"{piece.body}\n{piece.change}"
    return replace(piece, name=f"{piece.name}, changed inside", body=body, change="")
