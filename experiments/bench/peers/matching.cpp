// Dense matching of two pointmaps in straight loops, one pixel of image 2 at a time: what
// ops.iterative_projection, ops.refine_matches and ops.match compute, written down once more.
//
// Images are row-major with their channels last, a pixel's linear index is u + width * v.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

// Ray, its derivative along u and along v, filled up to one vector register of 512 bits.
constexpr int kRow = 16;

struct Ray {
    float x, y, z;
};

Ray normalized(float x, float y, float z) {
    const float length = std::sqrt(x * x + y * y + z * z);
    const float inverse = length > 0 ? 1 / length : 0;
    return {x * inverse, y * inverse, z * inverse};
}

int reflected(int position, int size) {
    return position < 0 ? -position : position >= size ? 2 * size - 2 - position : position;
}

// Unit rays and their derivatives by Scharr's stencil, reflected at the borders.
void ray_image(const float* points, int height, int width, float* table) {
    std::vector<Ray> rays(static_cast<size_t>(height) * width);
#pragma omp parallel for schedule(static)
    for (int n = 0; n < height * width; ++n)
        rays[n] = normalized(points[3 * n], points[3 * n + 1], points[3 * n + 2]);

#pragma omp parallel for schedule(static)
    for (int v = 0; v < height; ++v) {
        const int above = reflected(v - 1, height), below = reflected(v + 1, height);
        for (int u = 0; u < width; ++u) {
            const int left = reflected(u - 1, width), right = reflected(u + 1, width);
            auto at = [&](int column, int row) {
                return reinterpret_cast<const float*>(&rays[row * width + column]);
            };
            float* out = table + static_cast<size_t>(kRow) * (v * width + u);
            for (int c = 0; c < 3; ++c) {
                out[c] = at(u, v)[c];
                out[3 + c] = (3 * (at(right, above)[c] - at(left, above)[c]) +
                              10 * (at(right, v)[c] - at(left, v)[c]) +
                              3 * (at(right, below)[c] - at(left, below)[c])) / 32;
                out[6 + c] = (3 * (at(left, below)[c] - at(left, above)[c]) +
                              10 * (at(u, below)[c] - at(u, above)[c]) +
                              3 * (at(right, below)[c] - at(right, above)[c])) / 32;
            }
            for (int c = 9; c < kRow; ++c) out[c] = 0;
        }
    }
}

// What one look at image 1 says: the cost, J^T e and J^T J.
struct Equations {
    float cost, b1, b2, a11, a12, a22;
};

Equations look(const float* table, int width, float u, float v, Ray target) {
    const int left = static_cast<int>(u), top = static_cast<int>(v);
    const float du = u - left, dv = v - top;
    const float* corner = table + static_cast<size_t>(kRow) * (top * width + left);
    const float* below = corner + static_cast<size_t>(kRow) * width;
    float s[kRow];
#pragma omp simd
    for (int c = 0; c < kRow; ++c) {
        const float upper = corner[c] + du * (corner[kRow + c] - corner[c]);
        const float lower = below[c] + du * (below[kRow + c] - below[c]);
        s[c] = upper + dv * (lower - upper);
    }
    const Ray ray = normalized(s[0], s[1], s[2]);
    const float ex = ray.x - target.x, ey = ray.y - target.y, ez = ray.z - target.z;
    return {ex * ex + ey * ey + ez * ez,
            s[3] * ex + s[4] * ey + s[5] * ez,
            s[6] * ex + s[7] * ey + s[8] * ez,
            s[3] * s[3] + s[4] * s[4] + s[5] * s[5],
            s[3] * s[6] + s[4] * s[7] + s[5] * s[8],
            s[6] * s[6] + s[7] * s[7] + s[8] * s[8]};
}

}  // namespace

extern "C" void project(const float* points_1, const float* points_2, const int32_t* start,
                        int height, int width, int iterations, float damping_start,
                        float convergence, float* uv, uint8_t* converged) {
    std::vector<float> table(static_cast<size_t>(kRow) * height * width);
    ray_image(points_1, height, width, table.data());

#pragma omp parallel for schedule(static)
    for (int n = 0; n < height * width; ++n) {
        const float* point = points_2 + 3 * static_cast<size_t>(n);
        const Ray target = normalized(point[0], point[1], point[2]);
        float u = std::clamp(static_cast<float>(start[n] % width), 1.0f, width - 2.0f);
        float v = std::clamp(static_cast<float>(start[n] / width), 1.0f, height - 2.0f);
        float damping = damping_start;
        Equations now = look(table.data(), width, u, v, target);
        for (int k = 0; k < iterations; ++k) {
            const float a11 = now.a11 + damping, a22 = now.a22 + damping;
            const float determinant = a11 * a22 - now.a12 * now.a12;
            const float inverse = determinant == 0 ? 1 : 1 / determinant;
            const float step_u = (now.a12 * now.b2 - a22 * now.b1) * inverse;
            const float step_v = (now.a12 * now.b1 - a11 * now.b2) * inverse;
            const float new_u = std::clamp(u + step_u, 1.0f, width - 2.0f);
            const float new_v = std::clamp(v + step_v, 1.0f, height - 2.0f);
            const Equations there = look(table.data(), width, new_u, new_v, target);
            if (there.cost < now.cost) {
                u = new_u;
                v = new_v;
                now = there;
                damping *= 0.1f;
            } else {
                damping *= 10;
            }
        }
        uv[2 * n] = u;
        uv[2 * n + 1] = v;
        const bool seen = target.x != 0 || target.y != 0 || target.z != 0;
        converged[n] = now.cost < convergence && seen;
    }
}

namespace {

// With the number of channels known, the product of two descriptors is a few instructions.
template <int kChannels>
void refine_known(const float* descriptors_1, const float* descriptors_2, const int32_t* start,
                  int height, int width, int any_channels, int radius, int dilation,
                  int32_t* index) {
    const int channels = kChannels > 0 ? kChannels : any_channels;
#pragma omp parallel for schedule(static)
    for (int n = 0; n < height * width; ++n) {
        const float* query = descriptors_2 + static_cast<size_t>(channels) * n;
        int best_u = start[n] % width, best_v = start[n] / width;
        float best_score = std::numeric_limits<float>::lowest();
        for (int stride = dilation; stride > 0; --stride) {
            const int center_u = best_u, center_v = best_v;
            for (int i = -radius; i <= radius; ++i) {
                const int u = center_u + stride * i;
                if (u < 0 || u >= width) continue;
                for (int j = -radius; j <= radius; ++j) {
                    const int v = center_v + stride * j;
                    if (v < 0 || v >= height) continue;
                    const float* row =
                        descriptors_1 + static_cast<size_t>(channels) * (u + width * v);
                    float score = 0;  // "omp simd" here costs a factor of 5 with g++ 12
                    for (int c = 0; c < channels; ++c) score += row[c] * query[c];
                    if (score > best_score) {
                        best_score = score;
                        best_u = u;
                        best_v = v;
                    }
                }
            }
        }
        index[n] = best_u + width * best_v;
    }
}

}  // namespace

extern "C" void refine(const float* descriptors_1, const float* descriptors_2,
                       const int32_t* start, int height, int width, int channels, int radius,
                       int dilation, int32_t* index) {
    const auto run = channels == 16   ? refine_known<16>
                     : channels == 24 ? refine_known<24>
                     : channels == 32 ? refine_known<32>
                                      : refine_known<0>;
    run(descriptors_1, descriptors_2, start, height, width, channels, radius, dilation, index);
}

extern "C" void match(const float* points_1, const float* points_2, const float* descriptors_1,
                      const float* descriptors_2, const int32_t* start, int height, int width,
                      int channels, int iterations, float damping_start, float convergence,
                      float max_distance, int radius, int dilation, int32_t* index,
                      uint8_t* valid) {
    const size_t count = static_cast<size_t>(height) * width;
    std::vector<float> uv(2 * count);
    std::vector<int32_t> whole(count);
    project(points_1, points_2, start, height, width, iterations, damping_start, convergence,
            uv.data(), valid);
#pragma omp parallel for schedule(static)
    for (int n = 0; n < height * width; ++n) {
        whole[n] = static_cast<int>(uv[2 * n]) + width * static_cast<int>(uv[2 * n + 1]);
        const float* a = points_1 + 3 * static_cast<size_t>(whole[n]);
        const float* b = points_2 + 3 * static_cast<size_t>(n);
        const float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
        valid[n] = valid[n] && x * x + y * y + z * z < max_distance * max_distance;
    }
    refine(descriptors_1, descriptors_2, whole.data(), height, width, channels, radius, dilation,
           index);
}
