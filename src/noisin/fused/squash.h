/* Mean and variance of tanh and of the logistic sigmoid of a normal number, and their slopes, in
   float32. noisin.propagation has the formulas. */

#ifndef NOISIN_SQUASH_H
#define NOISIN_SQUASH_H

#include "numbers.h"

enum { MIXTURE = 0, CLOSED = 1, WANG_MANNING = 2 };

/* With k = q / sqrt(1 + 2 q^2 v) and e = exp(-k^2 m^2), M = sum c erf(k m) and
   S, Q, R = 2 / sqrt(pi) sum c k^1, 3, 5 e: the slopes of M are S and -m Q, those of S are -2 m Q
   and 2 m^2 R - Q. */
typedef struct {
    float shift, s, q, r; /* M(v) - M(0), S(0) - S(v), Q(0) - Q(v), and of v alone: R(v) */
    float q_here;         /* Q(v) */
} Mixture;

/* erf x to 1.5e-7 of e = exp(-x^2), Abramowitz and Stegun 7.1.26. */
INLINE float error_function(float x, float e) {
    const float t = 1.0f / (1.0f + 0.3275911f * magnitude(x));
    float sum = 1.061405429f;
    sum = sum * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    const float y = 1.0f - sum * t * e;
    return x < 0.0f ? -y : y;
}

INLINE float bell(float x) {
    float power, p;
    exponential(-x * x, &power, &p);
    return power + power * p;
}

INLINE void add_part(Mixture *sum, float share, float slope, float mean, float variance) {
    const float wide = 1.0f + 2.0f * slope * slope * variance;
    const float k = slope / sqrtf(wide), k2 = k * k, q2 = slope * slope;
    const float here = k * mean, there = slope * mean;
    const float e = bell(here), e0 = bell(there), norm = 1.1283791671f * share;
    sum->shift += share * (error_function(here, e) - error_function(there, e0));
    const float s0 = norm * slope * e0, s = norm * k * e;
    sum->s += s0 - s;
    sum->q += s0 * q2 - s * k2;
    sum->q_here += s * k2;
    sum->r += s * k2 * k2;
}

INLINE Mixture mixture(float mean, float variance) {
    Mixture sum = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    add_part(&sum, 0.0886673456f, 0.4764472635f, mean, variance);
    add_part(&sum, 0.4178972674f, 0.7087913120f, mean, variance);
    add_part(&sum, 0.4140872391f, 1.0357799047f, mean, variance);
    add_part(&sum, 0.0793481479f, 1.4978223619f, mean, variance);
    return sum;
}

/* Mean and variance of a squashed number, and their slopes by those of the number. */
typedef struct {
    float out, spread, out_m, out_v, spread_m, spread_v;
} Squashed;

/* `half`: 1 of tanh(a), 0.5 of the sigmoid, (1 + tanh(a / 2)) / 2. */
INLINE Squashed by_mixture(float half, float mean, float variance) {
    const float m = half * mean, h2 = half * half, plain = hyperbolic(m);
    const Mixture x = mixture(m, h2 * variance);
    const float slope = 1.0f - plain * plain, twice = 2.0f * plain + x.shift;
    const float all = x.s - x.shift * twice;
    const int fixed = variance <= 0.0f; /* what is left is rounding */
    const float known = all < 0.0f && !fixed ? 0.0f : h2;
    Squashed y;
    y.out = (half < 1.0f ? logistic(mean) : plain) + half * x.shift;
    y.spread = all < 0.0f || fixed ? 0.0f : h2 * all;
    y.out_m = h2 * (slope - x.s);
    y.out_v = -half * h2 * m * x.q_here;
    y.spread_m =
        half * known * (x.s * twice - 2.0f * m * x.q - x.shift * (2.0f * slope - x.s));
    y.spread_v = h2 * known *
                 (x.q_here - 2.0f * m * m * x.r + 2.0f * m * x.q_here * (plain + x.shift));
    return y;
}

INLINE Squashed by_closed(float half, float mean, float variance) {
    const float half_pi = 1.5707963268f, h2 = half * half, v = half_pi * h2 * variance;
    const float wide = 1.0f + v, root = sqrtf(wide);
    const float m = half * mean / root, plain = hyperbolic(m);
    const float slope = 1.0f - plain * plain, lost = v / (wide + root); /* 1 - 1 / root */
    const float by_m = slope / root, by_v = -0.5f * half_pi * slope * m / wide;
    Squashed y;
    y.out = half < 1.0f ? logistic(2.0f * m) : plain;
    y.spread = h2 * slope * lost;
    y.out_m = h2 * by_m;
    y.out_v = half * h2 * by_v;
    y.spread_m = -2.0f * half * h2 * plain * by_m * lost;
    y.spread_v =
        h2 * h2 * (-2.0f * plain * by_v * lost + 0.5f * half_pi * slope / (wide * root));
    return y;
}

/* Their sigmoid; tanh is 2 sigmoid(2 a) - 1. */
INLINE Squashed by_wang_manning(float half, float mean, float variance) {
    const float scale = 2.0f * half, m = scale * mean, v = scale * scale * variance;
    const float eighth = 0.3926990817f, slope = 1.1715728753f, offset = 0.8813735870f;
    const float wide = 1.0f + eighth * v, root = sqrtf(wide);
    const float wide2 = 1.0f + eighth * slope * slope * v, root2 = sqrtf(wide2);
    const float a = m / root, a2 = slope * (m - offset) / root2;
    const float s = logistic(a), s2 = logistic(a2);
    const float d = s * (1.0f - s), d2 = s2 * (1.0f - s2), all = s2 - s * s;
    const float by_m = d / root, by_v = -0.5f * eighth * d * a / wide;
    const float by_m2 = slope * d2 / root2;
    const float by_v2 = -0.5f * eighth * slope * slope * d2 * a2 / wide2;
    const float known = all < 0.0f ? 0.0f : scale * scale;
    Squashed y;
    y.out = scale * s - (scale - 1.0f);
    y.spread = known * all;
    y.out_m = scale * scale * by_m;
    y.out_v = scale * scale * scale * by_v;
    y.spread_m = scale * known * (by_m2 - 2.0f * s * by_m);
    y.spread_v = scale * scale * known * (by_v2 - 2.0f * s * by_v);
    return y;
}

#define BY_FORM(STATEMENT)                                                                         \
    if (form == MIXTURE) EACH(j, n) {                                                              \
        const Squashed y = by_mixture(half, mean[j], variance[j]);                                 \
        STATEMENT                                                                                  \
    }                                                                                              \
    if (form == CLOSED) EACH(j, n) {                                                               \
        const Squashed y = by_closed(half, mean[j], variance[j]);                                  \
        STATEMENT                                                                                  \
    }                                                                                              \
    if (form == WANG_MANNING) EACH(j, n) {                                                         \
        const Squashed y = by_wang_manning(half, mean[j], variance[j]);                            \
        STATEMENT                                                                                  \
    }

CLONES static void squash_block(int64_t form, int64_t n, float half, const float *restrict mean,
                                const float *restrict variance, float *restrict out,
                                float *restrict spread) {
    BY_FORM(out[j] = y.out; spread[j] = y.spread;)
}

/* A block of Squashed, field by field. */
typedef struct {
    float out[BLOCK], spread[BLOCK], out_m[BLOCK], out_v[BLOCK], spread_m[BLOCK], spread_v[BLOCK];
} Block;

CLONES static void slopes_block(int64_t form, int64_t n, float half, const float *restrict mean,
                                const float *restrict variance, Block *restrict to) {
    BY_FORM(to->out[j] = y.out; to->spread[j] = y.spread; to->out_m[j] = y.out_m;
            to->out_v[j] = y.out_v; to->spread_m[j] = y.spread_m; to->spread_v[j] = y.spread_v;)
}

/* What arrives at the number from what arrived at its squashed mean and variance. */
#define ARRIVED_M(block, of_out, of_spread) (of_out * block.out_m[j] + of_spread * block.spread_m[j])
#define ARRIVED_V(block, of_out, of_spread) (of_out * block.out_v[j] + of_spread * block.spread_v[j])

#endif
