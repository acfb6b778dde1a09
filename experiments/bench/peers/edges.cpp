// Normal equations of the edges of a pose graph in straight loops: what ops.edge_system computes.
//
// An edge's pixels are taken a block at a time. The weighted rows [J | z - h] of a block's pixels
// are written column by column, which vectorises over pixels; products of columns make its part
// of the edge's 8 x 8 Gram matrix.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

constexpr int kBlock = 256;  // 32 columns of 1 KiB: they stay in the first cache
constexpr int kColumns = 8;
constexpr int kEntries = kColumns * (kColumns + 1) / 2;

struct Motion {  // x -> sR x + t
    float r[9], t[3];
};

void rotation(const float* q, float* r) {  // of a unit quaternion (w, x, y, z)
    const float w = q[0], x = q[1], y = q[2], z = q[3];
    const float full[9] = {1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                           2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                           2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)};
    std::copy(full, full + 9, r);
}

// T_i^-1 T_j of poses (quaternion, translation, scale).
Motion relative(const float* pose_i, const float* pose_j) {
    float ri[9], rj[9];
    rotation(pose_i, ri);
    rotation(pose_j, rj);
    const float inverse = 1 / pose_i[7], scale = pose_j[7] * inverse;
    Motion out;
    for (int a = 0; a < 3; ++a) {
        for (int b = 0; b < 3; ++b)
            out.r[3 * a + b] = scale * (ri[a] * rj[b] + ri[3 + a] * rj[3 + b] + ri[6 + a] * rj[6 + b]);
        out.t[a] = 0;
        for (int c = 0; c < 3; ++c) out.t[a] += ri[3 * c + a] * (pose_j[4 + c] - pose_i[4 + c]);
        out.t[a] *= inverse;
    }
    return out;
}

struct Noise {
    float precision, last_precision, huber;
};

// sqrt(w) of a component: confidence, standard deviation and Huber's weight together.
inline float root_weight(float root_q, float precision, float residual, float huber) {
    const float root = root_q * precision;
    const float magnitude = std::fabs(root * residual);
    return magnitude > huber ? root * std::sqrt(huber / magnitude) : root;
}

struct Rows {
    float of[4][kColumns][kBlock];
};

void add_products(const Rows& rows, int components, int count, float* gram) {
    for (int k = 0; k < components; ++k) {
        int entry = 0;
        for (int a = 0; a < kColumns; ++a) {
            for (int b = a; b < kColumns; ++b, ++entry) {
                const float* x = rows.of[k][a];
                const float* y = rows.of[k][b];
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int n = 0; n < count; ++n) sum += x[n] * y[n];
                gram[entry] += sum;
            }
        }
    }
}

struct Block {  // matched points of some pixels; root_q is 0 where there is no match
    float x[kBlock], y[kBlock], z[kBlock], mx[kBlock], my[kBlock], mz[kBlock], root_q[kBlock];
    float u[kBlock], v[kBlock];
};

void ray_rows(const Block& in, int count, const Motion& T, const Noise& noise, Rows& rows) {
#pragma omp simd
    for (int n = 0; n < count; ++n) {
        const float Y0 = T.r[0] * in.x[n] + T.r[1] * in.y[n] + T.r[2] * in.z[n] + T.t[0];
        const float Y1 = T.r[3] * in.x[n] + T.r[4] * in.y[n] + T.r[5] * in.z[n] + T.t[1];
        const float Y2 = T.r[6] * in.x[n] + T.r[7] * in.y[n] + T.r[8] * in.z[n] + T.t[2];
        const float d = std::sqrt(Y0 * Y0 + Y1 * Y1 + Y2 * Y2);
        const float i = d > 0 ? 1 / d : 0;
        const float x = Y0 * i, y = Y1 * i, z = Y2 * i;
        const float md = std::sqrt(in.mx[n] * in.mx[n] + in.my[n] * in.my[n] + in.mz[n] * in.mz[n]);
        const float mi = md > 0 ? 1 / md : 0;
        const float e0 = in.mx[n] * mi - x, e1 = in.my[n] * mi - y, e2 = in.mz[n] * mi - z;
        const float e3 = md - d;
        const float w0 = root_weight(in.root_q[n], noise.precision, e0, noise.huber);
        const float w1 = root_weight(in.root_q[n], noise.precision, e1, noise.huber);
        const float w2 = root_weight(in.root_q[n], noise.precision, e2, noise.huber);
        const float w3 = root_weight(in.root_q[n], noise.last_precision, e3, noise.huber);
        const float xy = -x * y * i, xz = -x * z * i, yz = -y * z * i;
        auto& r = rows.of;
        r[0][0][n] = w0 * (1 - x * x) * i, r[0][1][n] = w0 * xy, r[0][2][n] = w0 * xz;
        r[0][3][n] = 0, r[0][4][n] = w0 * z, r[0][5][n] = -w0 * y;
        r[0][6][n] = 0, r[0][7][n] = w0 * e0;
        r[1][0][n] = w1 * xy, r[1][1][n] = w1 * (1 - y * y) * i, r[1][2][n] = w1 * yz;
        r[1][3][n] = -w1 * z, r[1][4][n] = 0, r[1][5][n] = w1 * x;
        r[1][6][n] = 0, r[1][7][n] = w1 * e1;
        r[2][0][n] = w2 * xz, r[2][1][n] = w2 * yz, r[2][2][n] = w2 * (1 - z * z) * i;
        r[2][3][n] = w2 * y, r[2][4][n] = -w2 * x, r[2][5][n] = 0;
        r[2][6][n] = 0, r[2][7][n] = w2 * e2;
        r[3][0][n] = w3 * x, r[3][1][n] = w3 * y, r[3][2][n] = w3 * z;
        r[3][3][n] = 0, r[3][4][n] = 0, r[3][5][n] = 0;
        r[3][6][n] = w3 * d, r[3][7][n] = w3 * e3;
    }
}

struct Camera {
    float fx, fy, cx, cy, width, height, border, depth_eps;
};

void pixel_rows(const Block& in, int count, const Motion& T, const Noise& noise, const Camera& K,
                Rows& rows) {
#pragma omp simd
    for (int n = 0; n < count; ++n) {
        const float Y0 = T.r[0] * in.x[n] + T.r[1] * in.y[n] + T.r[2] * in.z[n] + T.t[0];
        const float Y1 = T.r[3] * in.x[n] + T.r[4] * in.y[n] + T.r[5] * in.z[n] + T.t[1];
        const float Y2 = T.r[6] * in.x[n] + T.r[7] * in.y[n] + T.r[8] * in.z[n] + T.t[2];
        const bool front = Y2 > K.depth_eps, seen = in.mz[n] > K.depth_eps;
        const float depth = front ? Y2 : 1, measured = seen ? in.mz[n] : 1;
        const float i = 1 / depth, a = Y0 * i, b = Y1 * i;
        const float u = K.fx * a + K.cx, v = K.fy * b + K.cy;
        const bool inside = u > K.border && u < K.width - 1 - K.border && v > K.border &&
                            v < K.height - 1 - K.border;
        const float root_q = front && seen && inside ? in.root_q[n] : 0;
        const float e0 = in.u[n] - u, e1 = in.v[n] - v, e2 = std::log(measured) - std::log(depth);
        const float w0 = root_weight(root_q, noise.precision, e0, noise.huber);
        const float w1 = root_weight(root_q, noise.precision, e1, noise.huber);
        const float w2 = root_weight(root_q, noise.last_precision, e2, noise.huber);
        const float f0 = w0 * K.fx, f1 = w1 * K.fy;
        auto& r = rows.of;
        r[0][0][n] = f0 * i, r[0][1][n] = 0, r[0][2][n] = -f0 * a * i;
        r[0][3][n] = -f0 * a * b, r[0][4][n] = f0 * (1 + a * a), r[0][5][n] = -f0 * b;
        r[0][6][n] = 0, r[0][7][n] = w0 * e0;
        r[1][0][n] = 0, r[1][1][n] = f1 * i, r[1][2][n] = -f1 * b * i;
        r[1][3][n] = -f1 * (1 + b * b), r[1][4][n] = f1 * a * b, r[1][5][n] = f1 * a;
        r[1][6][n] = 0, r[1][7][n] = w1 * e1;
        r[2][0][n] = 0, r[2][1][n] = 0, r[2][2][n] = w2 * i;
        r[2][3][n] = w2 * b, r[2][4][n] = -w2 * a, r[2][5][n] = 0;
        r[2][6][n] = w2, r[2][7][n] = w2 * e2;
    }
}

}  // namespace

// poses [views, 8], points [views, pixels, 3], confidence [views, pixels]; i, j [edges];
// index, q, valid [edges, pixels]; camera: null for rays, else the eight numbers of Camera;
// grams [edges, 8, 8].
extern "C" void linearize(const float* poses, const float* points, const float* confidence,
                          const int32_t* i, const int32_t* j, const int32_t* index, const float* q,
                          const uint8_t* valid, int edges, int pixels, float min_confidence,
                          float sigma, float last_sigma, float huber, const float* camera,
                          float* grams) {
    const Noise noise = {1 / sigma, 1 / last_sigma, huber};
    Camera K = {};
    if (camera != nullptr)
        K = {camera[0], camera[1], camera[2], camera[3], camera[4], camera[5], camera[6], camera[7]};
    const int width = static_cast<int>(K.width);
    for (int e = 0; e < edges; ++e) {
        const Motion T = relative(poses + 8 * i[e], poses + 8 * j[e]);
        const size_t view_i = static_cast<size_t>(i[e]) * pixels;
        const size_t view_j = static_cast<size_t>(j[e]) * pixels;
        const size_t edge = static_cast<size_t>(e) * pixels;
        float gram[kEntries] = {};
#pragma omp parallel for schedule(static) reduction(+ : gram[:kEntries])
        for (int first = 0; first < pixels; first += kBlock) {
            const int count = std::min(kBlock, pixels - first);
            Block in;
            Rows rows;
#pragma omp simd
            for (int n = 0; n < count; ++n) {
                const int pixel = first + n;
                const bool matched = valid[edge + pixel];
                const int target = matched ? index[edge + pixel] : 0;
                const bool counts = matched && confidence[view_i + target] > min_confidence &&
                                    confidence[view_j + pixel] > min_confidence;
                const float* from = points + 3 * (view_j + pixel);
                const float* to = points + 3 * (view_i + target);
                in.root_q[n] = counts ? std::sqrt(q[edge + pixel]) : 0;
                in.x[n] = counts ? from[0] : 1, in.y[n] = counts ? from[1] : 1;
                in.z[n] = counts ? from[2] : 1, in.mx[n] = counts ? to[0] : 1;
                in.my[n] = counts ? to[1] : 1, in.mz[n] = counts ? to[2] : 1;
                if (camera != nullptr) {
                    in.u[n] = static_cast<float>(target % width);
                    in.v[n] = static_cast<float>(target / width);
                }
            }
            if (camera == nullptr)
                ray_rows(in, count, T, noise, rows);
            else
                pixel_rows(in, count, T, noise, K, rows);
            add_products(rows, camera == nullptr ? 4 : 3, count, gram);
        }
        int entry = 0;
        for (int a = 0; a < kColumns; ++a)
            for (int b = a; b < kColumns; ++b, ++entry)
                grams[64 * e + 8 * a + b] = grams[64 * e + 8 * b + a] = gram[entry];
    }
}
