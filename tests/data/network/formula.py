"""Deterministic weights and images for the MASt3R test vectors.

Needs numpy only.  Both sides (the reference run and a reimplementation under
test) call these functions, so neither weights nor input images are stored.

Everything is drawn from ``numpy.random.default_rng`` (PCG64).  The vectors
were made with numpy 2.4.6; ``selfcheck()`` compares a few drawn numbers with
the ones of that run and should be called first by any test that uses this file.

weight(name, shape, salt="")
    ``name`` is a PyTorch state-dict key and ``shape`` the PyTorch shape (tuple).
    The key is first made canonical (see ``canonical``): the DPT head registers
    four tensors under two names each, and both names must give one tensor.
      rng  = default_rng(crc32((salt + canonical(name)).encode()))
      x    = rng.standard_normal(shape, dtype=float32)      (C order)
      1-D and the last path element is "weight" (LayerNorm) -> 1 + 0.1 x
      1-D otherwise (every bias)                            -> 0.05 x
      else                                       -> x * float32(1/sqrt(fan_in))
    fan_in = product of shape[1:], except for the two transposed convolutions
    (keys ending in act_postprocess.0.1.weight and act_postprocess.1.1.weight,
    laid out [in, out, kh, kw]) where fan_in = shape[0].
    One exception keeps the exp() output modes in a sane range: the weight of
    the last 1x1 convolution of each DPT head (keys ending in dpt.head.4.weight)
    is multiplied by a further 0.25.
    All arithmetic is float32.

image(seed, h, w)
    float32 [h, w, 3] in (-1, 1).  With rng = default_rng(seed), drawn in this
    order, all float64:
      freq  = rng.uniform(-10, 10, (3, 12, 2))   cycles per longer image side,
                                                 last axis = (along x, along y)
      phase = rng.uniform(0, 2 pi, (3, 12))
      amp   = rng.uniform(0.1, 0.5, (3, 12))
      noise = rng.standard_normal((h, w, 3))
    With X = column/max(h, w), Y = row/max(h, w):
      value[..., c] = tanh( sum_k amp[c,k] sin(2 pi (freq[c,k,0] X
                            + freq[c,k,1] Y) + phase[c,k]) + 0.1 noise[..., c] )
    computed in float64 and rounded to float32 once at the end.

image_u8(seed, h, w)
    (255 * (image + 1) / 2).astype(uint8), evaluated in float32 (truncates).
"""

import zlib

import numpy as np

_TRANSPOSED = ("act_postprocess.0.1.weight", "act_postprocess.1.1.weight")
_LAST = "dpt.head.4.weight"


def canonical(name):
    """Map "...scratch.layer{k}_rn.weight" to "...scratch.layer_rn.{k-1}.weight"."""
    for k in (1, 2, 3, 4):
        name = name.replace(f"scratch.layer{k}_rn.", f"scratch.layer_rn.{k - 1}.")
    return name


def weight(name, shape, salt=""):
    name = canonical(name)
    shape = tuple(int(s) for s in shape)
    rng = np.random.default_rng(zlib.crc32((salt + name).encode()))
    x = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        if name.rsplit(".", 1)[-1] == "weight":
            return np.float32(1.0) + np.float32(0.1) * x
        return np.float32(0.05) * x
    if name.endswith(_TRANSPOSED):
        fan_in = shape[0]
    else:
        fan_in = int(np.prod(shape[1:]))
    x = x * np.float32(1.0 / np.sqrt(float(fan_in)))
    if name.endswith(_LAST):
        x = x * np.float32(0.25)
    return x


def image(seed, h, w):
    rng = np.random.default_rng(seed)
    freq = rng.uniform(-10.0, 10.0, (3, 12, 2))
    phase = rng.uniform(0.0, 2.0 * np.pi, (3, 12))
    amp = rng.uniform(0.1, 0.5, (3, 12))
    noise = rng.standard_normal((h, w, 3))
    side = float(max(h, w))
    X = (np.arange(w) / side)[None, :]
    Y = (np.arange(h) / side)[:, None]
    out = np.empty((h, w, 3), np.float64)
    for c in range(3):
        acc = 0.1 * noise[..., c]
        for k in range(12):
            arg = 2.0 * np.pi * (freq[c, k, 0] * X + freq[c, k, 1] * Y) + phase[c, k]
            acc = acc + amp[c, k] * np.sin(arg)
        out[..., c] = np.tanh(acc)
    return out.astype(np.float32)


def image_u8(seed, h, w):
    return (np.float32(255) * (image(seed, h, w) + np.float32(1)) / np.float32(2)).astype(np.uint8)


# Filled from the run that made the vectors (numpy 2.4.6).
_CHECK = [
    0.18502187728881836,
    -0.5099890232086182,
    -0.05062926933169365,
    4.758457660675049,
    -0.20368896424770355,
    0.0032466910779476166,
    3.429039836861193,
    -0.32460734248161316,
]


def selfcheck():
    """Raise AssertionError when this numpy does not reproduce the drawn numbers."""
    w = weight("enc_blocks.0.attn.qkv.weight", (6, 4))
    b = weight("enc_norm.bias", (5,), "holdout/")
    g = weight("enc_norm.weight", (5,))
    t = weight("downstream_head1.dpt.act_postprocess.0.1.weight", (3, 3, 2, 2))
    last = weight("downstream_head2.dpt.head.4.weight", (4, 16, 1, 1))
    im = image(7, 5, 9)
    got = [
        float(w.sum()),
        float(w[5, 3]),
        float(b.sum()),
        float(g.sum()),
        float(t[2, 2, 1, 1]),
        float(last[3, 15, 0, 0]),
        float(im.astype(np.float64).sum()),
        float(im[4, 8, 2]),
    ]
    assert np.allclose(got, _CHECK, rtol=1e-5, atol=1e-6), (got, _CHECK)
    return got


if __name__ == "__main__":
    print(selfcheck())
