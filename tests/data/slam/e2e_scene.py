"""Inputs of the end-to-end golden trace, by formula (numpy only)."""

import numpy as np
from scene import Scene, rodrigues, two_view, hash_noise


def poses(cfg):
    P = []
    for i in range(cfg["n"]):
        a = cfg["yaw0"] + cfg["dyaw"] * i
        if i >= cfg["jump_at"]:
            a = cfg["yaw0"] + cfg["jump_yaw"] + 0.03 * (i - cfg["jump_at"])  # kidnapped
        if i >= cfg["back_at"]:
            a = (
                cfg["yaw0"] + cfg["back_yaw"] + 0.05 * (i - cfg["back_at"])
            )  # back in a well-mapped part
        R = rodrigues([0, a, 0]) @ rodrigues([0.08 * np.sin(0.3 * i), 0, 0.04 * np.cos(0.2 * i)])
        t = np.array(
            [cfg["r"] * np.sin(a + 0.4), 0.06 * np.sin(0.25 * i), cfg["r"] * np.cos(a + 0.4)]
        )
        P.append((R, t))
    return P


class Net:
    """pair(i, j) -> outputs for ordered pair (view1 = frame i, view2 = frame j); enc(i) -> encoder tokens."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.scene = Scene(cfg["scene_seed"])
        self.P = poses(cfg)
        r = np.random.RandomState(cfg["scene_seed"] + 1)
        self.We = r.randn(32, 3) * cfg["enc_freq"]
        self.be = r.uniform(0, 2 * np.pi, 32)

    def pair(self, i, j):
        c = self.cfg
        return two_view(
            self.scene,
            self.P[i],
            self.P[j],
            c["h"],
            c["w"],
            noise=c["noise"],
            smooth=c["smooth"],
            scale_amp=c["scale_amp"],
            key=c["base"] + 1000 * i + j,
        )

    def enc(self, i):
        """(1,192,64) float32 (rounded to float16): 4x4-pixel block means of Fourier features of world points"""
        h, w = self.cfg["h"], self.cfg["w"]
        _, P = self.scene.view(*self.P[i], h, w)
        ph = P @ self.We.T + self.be
        F = np.concatenate([np.sin(ph), np.cos(ph)], -1)
        F = F.reshape(h // 4, 4, w // 4, 4, 64).mean((1, 3)).reshape(1, -1, 64)
        F = F * (
            1 + 0.3 * np.abs(hash_noise((1, F.shape[1], 1), 999))
        )  # fixed per-token gain: distinct attention
        return F.astype(np.float16).astype(np.float32)

    def centroids(self, n=256):
        r = np.random.RandomState(self.cfg["scene_seed"] + 2)
        # random points on the room's walls
        p = r.uniform(-1, 1, (n, 3))
        ax = r.randint(0, 3, n)
        p[np.arange(n), ax] = np.sign(p[np.arange(n), ax])
        p = p * self.scene.half
        ph = p @ self.We.T + self.be
        return (np.concatenate([np.sin(ph), np.cos(ph)], -1) * 1.15).astype(np.float32)


CFG = dict(
    n=62,
    h=48,
    w=64,
    yaw0=0.2,
    dyaw=2 * np.pi / 50,
    jump_at=54,
    jump_yaw=2.0,
    back_at=57,
    back_yaw=0.05,
    r=0.35,
    noise=0.003,
    smooth=0.008,
    scale_amp=0.02,
    scene_seed=11,
    base=500000,
    enc_freq=4.0,
)
