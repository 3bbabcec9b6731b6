/* Uniform and normal numbers of a seed, by Threefry-2x32 of 20 rounds: number n is a function of n,
   so that numbers are drawn in any order, by any number of threads. noisin.streams calls it. */

#include "numbers.h"

INLINE uint32_t rotated(uint32_t x, int by) { return x << by | x >> (32 - by); }

#define ROUND(by)                                                                                  \
    a += b;                                                                                        \
    b = rotated(b, by) ^ a;
#define FOUR(r0, r1, r2, r3) ROUND(r0) ROUND(r1) ROUND(r2) ROUND(r3)
#define KEY(one, other, count)                                                                     \
    a += one;                                                                                      \
    b += other + count;

/* Two words of 32 bits become two others, under the two words of a key. */
INLINE void threefry(uint32_t key, uint32_t key2, uint32_t *first, uint32_t *second) {
    const uint32_t key3 = 0x1bd11bdau ^ key ^ key2;
    uint32_t a = *first + key, b = *second + key2;
    FOUR(13, 15, 26, 6) KEY(key2, key3, 1u)
    FOUR(17, 29, 16, 24) KEY(key3, key, 2u)
    FOUR(13, 15, 26, 6) KEY(key, key2, 3u)
    FOUR(17, 29, 16, 24) KEY(key2, key3, 4u)
    FOUR(13, 15, 26, 6) KEY(key3, key, 5u)
    *first = a;
    *second = b;
}

/* For normal x > 0, to about an ulp: x = 2^e (1 + r) with 1 + r from sqrt(1/2) to sqrt(2). */
INLINE float logarithm(float x) {
    union { float real; uint32_t bits; } u;
    u.real = x;
    const uint32_t above = u.bits - 0x3f3504f3u; /* sqrt(1/2) */
    const float e = (float)((int32_t)above >> 23);
    u.bits = (above & 0x007fffffu) + 0x3f3504f3u;
    const float r = u.real - 1.0f, r2 = r * r;
    float sum = 7.0376836e-2f;
    sum = sum * r - 1.1514610e-1f;
    sum = sum * r + 1.1676999e-1f;
    sum = sum * r - 1.2420141e-1f;
    sum = sum * r + 1.4249323e-1f;
    sum = sum * r - 1.6668058e-1f;
    sum = sum * r + 2.0000715e-1f;
    sum = sum * r - 2.4999994e-1f;
    sum = sum * r + 3.3333331e-1f;
    return e * 0.693359375f + (r + (sum * r * r2 - 0.5f * r2 - e * 2.12194440e-4f));
}

/* cos and sin of 2 pi turn / 2^32: a whole number of quarters, and what is left of one. */
INLINE void circle(uint32_t turn, float *x, float *y) {
    const uint32_t quarter = (turn + 0x20000000u) >> 30;
    const float angle = (float)(int32_t)(turn - (quarter << 30)) * 1.4629180793e-9f;
    const float a2 = angle * angle;
    const float c = 1.0f - 0.5f * a2 +
                    a2 * a2 * (4.1666646e-2f + a2 * (-1.3887316e-3f + a2 * 2.4433157e-5f));
    const float s = angle + angle * a2 * (-1.6666655e-1f + a2 * (8.3321609e-3f + a2 * -1.9515296e-4f));
    const float across = quarter & 1 ? s : c, along = quarter & 1 ? c : s;
    *x = (quarter + 1) & 2 ? -across : across;
    *y = quarter & 2 ? -along : along;
}

typedef struct {
    uint64_t seed;
    uint32_t call;
    int64_t normal, size;
    float *out;
} Draw;

/* The numbers of one block of 2 * BLOCK. */
CLONES static void draw_block(const Draw *d, int64_t block, float *restrict out) {
    const uint32_t key = (uint32_t)d->seed, key2 = (uint32_t)(d->seed >> 32), call = d->call;
    const uint32_t start = (uint32_t)(block * BLOCK);
    if (d->normal) {
        EACH(j, BLOCK) {
            uint32_t a = start + (uint32_t)j, b = call;
            threefry(key, key2, &a, &b);
            const float u = ((float)(int32_t)(a >> 8) + 0.5f) * 5.9604645e-8f; /* 2^-24 */
            const float radius = sqrtf(-2.0f * logarithm(u));
            float x, y;
            circle(b, &x, &y);
            out[j] = radius * x;
            out[BLOCK + j] = radius * y;
        }
    } else {
        EACH(j, BLOCK) {
            uint32_t a = start + (uint32_t)j, b = call;
            threefry(key, key2, &a, &b);
            out[j] = (float)(int32_t)(a >> 8) * 5.9604645e-8f;
            out[BLOCK + j] = (float)(int32_t)(b >> 8) * 5.9604645e-8f;
        }
    }
}

static void draw_blocks(void *data, int64_t from, int64_t to) {
    const Draw *d = data;
    for (int64_t block = from; block < to; block++) {
        const int64_t start = block * 2 * BLOCK, left = d->size - start;
        if (left >= 2 * BLOCK) {
            draw_block(d, block, d->out + start);
        } else {
            float last[2 * BLOCK];
            draw_block(d, block, last);
            memcpy(d->out + start, last, (size_t)left * sizeof(float));
        }
    }
}

/* `call` tells the draws of one seed apart; `normal` is 0 for U[0, 1). */
PUBLIC void noisin_draw(uint64_t seed, uint32_t call, int64_t normal, int64_t size, float *out,
                        Parallel *parallel, int64_t threads) {
    Draw d = {seed, call, normal, size, out};
    share_rows(draw_blocks, &d, (size + 2 * BLOCK - 1) / (2 * BLOCK), 2 * BLOCK, parallel, threads);
}
