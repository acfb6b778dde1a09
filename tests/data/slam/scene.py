"""Synthetic scene + fake two-view network, numpy only (float64 inside). Written for the golden
vectors; not derived from the reference. Cameras: OpenCV (x right, y down, z forward), pixel (u,v)
= integer centre. T_WC: camera->world Sim(3) with scale 1."""

import numpy as np


def intrinsics(h, w):
    f = 0.8 * w
    return np.array([[f, 0, (w - 1) / 2], [0, f, (h - 1) / 2], [0, 0, 1.0]])


def rodrigues(phi):
    phi = np.asarray(phi, float)
    th = np.linalg.norm(phi)
    K = np.array([[0, -phi[2], phi[1]], [phi[2], 0, -phi[0]], [-phi[1], phi[0], 0]])
    if th < 1e-12:
        return np.eye(3) + K
    return np.eye(3) + np.sin(th) / th * K + (1 - np.cos(th)) / th**2 * K @ K


def rot_to_quat(R):  # xyzw
    w = np.sqrt(max(0, 1 + R[0, 0] + R[1, 1] + R[2, 2])) / 2
    if w > 1e-3:
        q = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / (4 * w)
        return np.concatenate([q, [w]])
    i = int(np.argmax(np.diag(R)))
    j, k = (i + 1) % 3, (i + 2) % 3
    x = np.sqrt(max(0, 1 + R[i, i] - R[j, j] - R[k, k])) / 2
    q = np.zeros(4)
    q[i] = x
    q[j] = (R[j, i] + R[i, j]) / (4 * x)
    q[k] = (R[k, i] + R[i, k]) / (4 * x)
    q[3] = (R[k, j] - R[j, k]) / (4 * x)
    return q if q[3] >= 0 else -q


class Scene:
    def __init__(self, seed, half=(1.5, 1.0, 1.5), n_box=4, n_sph=3):
        r = np.random.RandomState(seed)
        self.half = np.array(half, float)
        self.boxes = []
        self.spheres = []
        for _ in range(n_box):
            c = np.array(
                [
                    r.uniform(-1, 1) * half[0] * 0.8,
                    r.uniform(0.1, 0.9) * half[1],
                    r.uniform(0.35, 0.9) * half[2] * r.choice([1, 1, -1]),
                ]
            )
            s = r.uniform(0.12, 0.32, 3)
            self.boxes.append((c - s, c + s))
        for _ in range(n_sph):
            c = np.array(
                [
                    r.uniform(-0.8, 0.8) * half[0],
                    r.uniform(-0.8, 0.6) * half[1],
                    r.uniform(0.4, 0.9) * half[2] * r.choice([1, 1, -1]),
                ]
            )
            self.spheres.append((c, r.uniform(0.12, 0.3)))
        # random Fourier features of the world position -> 24-dim descriptors
        self.W = r.randn(12, 3) * np.linspace(4.0, 22.0, 12)[:, None]
        self.b = r.uniform(0, 2 * np.pi, 12)
        # smooth texture / confidence frequencies
        self.Wc = r.randn(6, 3) * 2.5
        self.bc = r.uniform(0, 2 * np.pi, 6)

    def raycast(self, o, d):
        """o (3,), d (...,3) -> distance parameter t (...)  (d need not be unit)"""
        with np.errstate(divide="ignore", invalid="ignore"):
            inv = 1.0 / d
        t1 = (-self.half - o) * inv
        t2 = (self.half - o) * inv
        t = np.min(np.maximum(t1, t2), axis=-1)  # inside the room: exit distance
        for lo, hi in self.boxes:
            a, b = (lo - o) * inv, (hi - o) * inv
            tn = np.max(np.minimum(a, b), axis=-1)
            tf = np.min(np.maximum(a, b), axis=-1)
            hit = (tn < tf) & (tn > 1e-6)
            t = np.where(hit & (tn < t), tn, t)
        dd = (d * d).sum(-1)
        for c, rad in self.spheres:
            oc = o - c
            bq = (d * oc).sum(-1)
            disc = bq * bq - dd * ((oc * oc).sum() - rad * rad)
            ts = (-bq - np.sqrt(np.maximum(disc, 0))) / dd
            hit = (disc > 0) & (ts > 1e-6)
            t = np.where(hit & (ts < t), ts, t)
        return t

    def view(self, R, t, h, w):
        """camera->world R,t. Returns X (h,w,3) in camera frame and P (h,w,3) in world."""
        K = intrinsics(h, w)
        u, v = np.meshgrid(np.arange(w), np.arange(h))
        dc = np.stack(
            [(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u, float)], -1
        )
        z = self.raycast(np.asarray(t, float), dc @ R.T)
        X = dc * z[..., None]
        return X, X @ R.T + t

    def desc(self, P):
        ph = P @ self.W.T + self.b
        D = np.concatenate([np.sin(ph), np.cos(ph)], -1)
        return D / np.linalg.norm(D, axis=-1, keepdims=True)

    def conf(self, P, k):
        """smooth in [1,5]; k selects one of 6 fields"""
        return 3.0 + 2.0 * np.sin(P @ self.Wc[k] + self.bc[k])

    def image(self, P):
        ph = P @ self.W[:3].T + self.b[:3]
        return 0.5 + 0.5 * np.sin(ph)


def hash_noise(shape, key):
    """Deterministic standard-normal noise, independent of any RNG library (splitmix64 + Box-Muller)."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):

        def u01(salt):
            x = np.arange(n, dtype=np.uint64) + np.uint64(
                (key * 2654435761 + salt * 40503) % (1 << 63)
            )
            x = x + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
            return ((x >> np.uint64(11)).astype(np.float64) + 0.5) / float(1 << 53)

        a, b = u01(1), u01(2)
    return (np.sqrt(-2 * np.log(a)) * np.cos(2 * np.pi * b)).reshape(shape)


def lowfreq_noise(h, w, key):
    """smooth noise field ~N(0,1)-ish, 5 random cosines"""
    p = hash_noise((5, 4), key)
    v, u = np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing="ij")
    f = sum(p[i, 3] * np.cos(3 * p[i, 0] * u + 3 * p[i, 1] * v + 6 * p[i, 2]) for i in range(5))
    return f / np.sqrt(2.5)


def two_view(
    scene, T1, T2, h, w, noise=0.0, key=0, qc=(0, 1), cc=(2, 3), scale_amp=0.0, smooth=0.0
):
    """'Network' output for the ordered pair (view 1, view 2): everything in view 1's camera frame.
    T = (R, t) camera->world. Returns float32 X11,X21 (h,w,3); D11,D21 (h,w,24); C11,C21,Q11,Q21 (h,w).
    noise: white relative noise per point; smooth: low-frequency relative depth noise; scale_amp: random
    global log-scale error per pair."""
    R1, t1 = T1
    R2, t2 = T2
    X1, P1 = scene.view(R1, t1, h, w)
    X2, P2 = scene.view(R2, t2, h, w)
    X21 = (P2 - t1) @ R1
    s = np.exp(scale_amp * hash_noise((1,), key + 77)[0])
    out = []
    for m, X in ((1, X1), (2, X21)):
        d = np.linalg.norm(X, axis=-1, keepdims=True)
        Y = X + noise * d * hash_noise(X.shape, key * 16 + m)
        Y = Y * (1 + smooth * lowfreq_noise(h, w, key * 16 + 4 + m))[..., None]
        out.append((s * Y).astype(np.float32))
    D = [scene.desc(P).astype(np.float32) for P in (P1, P2)]
    C = [scene.conf(P, k).astype(np.float32) for P, k in ((P1, cc[0]), (P2, cc[1]))]
    Q = [scene.conf(P, k).astype(np.float32) for P, k in ((P1, qc[0]), (P2, qc[1]))]
    return dict(X11=out[0], X21=out[1], D11=D[0], D21=D[1], C11=C[0], C21=C[1], Q11=Q[0], Q21=Q[1])
