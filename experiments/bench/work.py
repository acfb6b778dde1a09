"""Operations and bytes of every stage, counted by formula.

An operation is an addition, a multiplication, a comparison, a division or a root. Bytes are those
of inputs and outputs, each moved once: what an implementation moves besides is its own affair. A
stage cannot be faster than its operations at the rate of a matrix product, nor than its bytes at
the rate of a copy; most stages gather and branch, and come nowhere near either.
"""

import math

from experiments.bench.stage import Work
from mast3r_jax import MASt3RConfig
from ops import MatchConfig

FLOAT, INT, BOOL, HALF = 4, 4, 1, 2
"""Bytes of a number."""


# the network


def _block(tokens: int, dim: int, hidden: int, crosses: bool) -> float:
    """Products of one transformer block.

    Self-attention: queries, keys, values and the way out, 4 d^2 a token; scores and mixing, 2 n d.
    Cross-attention: the same again. MLP: 2 d h.
    """
    attention = 4 * dim**2 + 2 * tokens * dim
    return 2 * tokens * (attention * (2 if crosses else 1) + 2 * dim * hidden)


def _block_parameters(dim: int, hidden: int, crosses: bool) -> int:
    return 4 * dim**2 * (2 if crosses else 1) + 2 * dim * hidden


def _tokens(config: MASt3RConfig, pixels: int) -> int:
    return pixels // config.patch_size**2


def encoder_block(config: MASt3RConfig, pixels: int) -> Work:
    """One block of the encoder on one image."""
    n, d = _tokens(config, pixels), config.enc_dim
    hidden = int(d * config.mlp_ratio)
    moved = FLOAT * (_block_parameters(d, hidden, False) + 2 * n * d)
    return Work(_block(n, d, hidden, False), moved)


def decoder_block(config: MASt3RConfig, pixels: int) -> Work:
    """One block of one decoder: one view, reading the other."""
    n, d = _tokens(config, pixels), config.dec_dim
    hidden = int(d * config.mlp_ratio)
    moved = FLOAT * (_block_parameters(d, hidden, True) + 3 * n * d)
    return Work(_block(n, d, hidden, True), moved)


def encoder(config: MASt3RConfig, pixels: int, dtype: str) -> Work:
    """Patch embedding and all blocks, on one image."""
    n, d = _tokens(config, pixels), config.enc_dim
    hidden = int(d * config.mlp_ratio)
    embedding = 3 * config.patch_size**2 * d
    parameters = embedding + config.enc_depth * _block_parameters(d, hidden, False)
    operations = 2 * n * embedding + config.enc_depth * _block(n, d, hidden, False)
    width = HALF if dtype == "bfloat16" else FLOAT
    return Work(operations, width * parameters + FLOAT * (3 * pixels + n * d), dtype)


def decoder(config: MASt3RConfig, pixels: int, dtype: str) -> Work:
    """Both decoders and both heads, on one pair."""
    n, d, p = _tokens(config, pixels), config.dec_dim, config.patch_size
    hidden = int(d * config.mlp_ratio)
    wide = config.enc_dim + d
    local = wide * int(wide * config.mlp_ratio)
    local += int(wide * config.mlp_ratio) * (config.descriptor_dim + 1) * p * p
    dense, dense_parameters = _dense_head(config, n)
    a_view = 2 * n * config.enc_dim * d + config.dec_depth * _block(n, d, hidden, True)
    a_view += 2 * n * local + dense
    parameters = config.dec_depth * _block_parameters(d, hidden, True) + local + dense_parameters
    outputs = pixels * (4 + config.descriptor_dim + 1)
    width = HALF if dtype == "bfloat16" else FLOAT
    return Work(
        2 * a_view, 2 * (width * (parameters + n * config.enc_dim) + FLOAT * outputs), dtype
    )


def _dense_head(config: MASt3RConfig, n: int) -> tuple[float, int]:
    """Operations and parameters of the dense head of one view with n tokens.

    Levels have 16, 4, 1 and 1/4 positions a token. Each is projected, brought to its size and to
    ``dpt_dim`` channels by a 3x3 convolution, and merged into the next finer one by one or two
    residual units of two such convolutions and a projection. Two more convolutions, at 8x8 and at
    16x16 positions a token, and a projection to 4 numbers make the map.
    """
    dim, last, sizes = config.dpt_dim, config.dpt_last_dim, config.dpt_layer_dims
    positions = [16 * n, 4 * n, n, math.ceil(n / 4)]
    sources = (config.enc_dim, *[config.dec_dim] * 3)
    layers: list[tuple[float, int]] = []  # positions, parameters
    layers += [(n, a * b) for a, b in zip(sources, sizes, strict=True)]
    layers += [(n, 16 * sizes[0] ** 2), (n, 4 * sizes[1] ** 2), (positions[3], 9 * sizes[3] ** 2)]
    layers += [(at, 9 * size * dim) for at, size in zip(positions, sizes, strict=True)]
    for level, at in enumerate(positions):
        layers += [(at, 9 * dim**2)] * (2 if level == 3 else 4)
        layers += [(4 * at, dim**2)]
    layers += [
        (64 * n, 9 * dim * (dim // 2)),
        (256 * n, 9 * (dim // 2) * last),
        (256 * n, 4 * last),
    ]
    operations = sum(2 * at * parameters for at, parameters in layers)
    return operations, sum(parameters for _, parameters in layers)


# matching


def projection(pixels: int, config: MatchConfig) -> Work:
    """Iterative projection.

    Once a pixel: two rays (9 each) and Scharr's stencil of three channels (2 x 3 x 8). A look at
    the image: weights of four corners (6), nine channels of them (9 x 7), ray (9), error and cost
    (8), J^T e and J^T J (25). An iteration: a step (20), clamping and choosing (20), and a look.
    """
    look = 6 + 9 * 7 + 9 + 8 + 25
    operations = 2 * 9 + 2 * 3 * 8 + look + config.max_iterations * (20 + 20 + look)
    moved = 2 * 3 * FLOAT + INT + 2 * FLOAT + BOOL
    return Work(operations * pixels, moved * pixels)


def refinement(pixels: int, channels: int, config: MatchConfig) -> Work:
    """Descriptor refinement: products of descriptors in ``dilation`` windows."""
    window = (2 * config.radius + 1) ** 2
    operations = config.dilation * window * (2 * channels + 1)
    moved = 2 * channels * FLOAT + 2 * INT
    return Work(operations * pixels, moved * pixels)


def matching(pixels: int, channels: int, config: MatchConfig) -> Work:
    """Both, and the distance of the points between them (9 operations)."""
    project, refine = projection(pixels, config), refinement(pixels, channels, config)
    moved = (2 * 3 + 2 * channels) * FLOAT + 2 * INT + BOOL + 2 * FLOAT
    return Work(project.operations + refine.operations + 9 * pixels, moved * pixels)


# geometry


def _normal_equations(components: int) -> int:
    """Operations for one matched pixel.

    Moving the point 18, prediction and measurement 10 each, Jacobian 15; a component's weight 8 and
    its weighted row 8; its products of columns 2 x 36.
    """
    return 18 + 2 * 10 + 15 + components * (8 + 8 + 2 * 36)


def pose(pixels: int, components: int, iterations: int) -> Work:
    """A pose solve that takes so many iterations; its inputs are read in each of them."""
    moved = iterations * pixels * (2 * 3 * FLOAT + FLOAT + BOOL)
    return Work(iterations * pixels * _normal_equations(components), moved)


def fusion(pixels: int) -> Work:
    """Weighted average of points: a product and a sum for each coordinate, and one division."""
    return Work(pixels * (3 * 4 + 1), pixels * FLOAT * (2 * 4 + 4))


def edges(pixels: int, count: int, components: int) -> Work:
    """Normal equations of so many edges: points and confidences of both ends, and the matches."""
    moved = count * pixels * (2 * 3 * FLOAT + 2 * FLOAT + INT + HALF + BOOL)
    return Work(count * pixels * _normal_equations(components), moved)


def cholesky(rows: int) -> Work:
    """Factorisation and two substitutions in double precision; half of the matrix is read."""
    return Work(rows**3 / 3 + 2 * rows**2, 8 * (rows**2 / 2 + 2 * rows), "float64")


def optimization(pixels: int, count: int, components: int, keyframes: int, iterations: int) -> Work:
    """Edges and solver, iteration by iteration; the solver's part is counted with the edges'."""
    edge, solver = edges(pixels, count, components), cholesky(7 * (keyframes - 1))
    return Work(
        iterations * (edge.operations + solver.operations),
        iterations * (edge.moved + solver.moved),
    )
