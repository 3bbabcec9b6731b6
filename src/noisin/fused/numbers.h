/* What the C files share: kinds of processors, threads, and the functions of a single number. */

#ifndef NOISIN_NUMBERS_H
#define NOISIN_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#define restrict __restrict
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

/* One copy of each function for a kind of processor, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define CLONES
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* A loop whose turns do not depend on each other, which compilers do not see by themselves. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif
#define EACH(index, count) INDEPENDENT for (int64_t index = 0; index < (count); index++)

enum { BLOCK = 128 }; /* units at a time, so that what is between two loops stays near */
enum { WORTH_SHARING = 1500 }; /* units of a thread; fewer take less time than its call */
enum { ELMAN = 0, GRU = 1, LSTM = 2 };

/* Runs a function in so many threads at once, the calling one among them; the arguments of
   GOMP_parallel. */
typedef void Parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);

/* One part of the rows, for a function that takes a part at a time. */
typedef struct {
    void (*run)(void *data, int64_t from, int64_t to);
    void *data;
    int64_t rows, parts, taken;
} Share;

#if defined(__GNUC__)
/* One thread's parts, and what no other thread takes. */
static void take(void *shared) {
    Share *s = shared;
    for (;;) {
        const int64_t part = __atomic_fetch_add(&s->taken, 1, __ATOMIC_RELAXED);
        if (part >= s->parts) return;
        s->run(s->data, s->rows * part / s->parts, s->rows * (part + 1) / s->parts);
    }
}
#endif

/* Runs a function over rows, shared among threads where there is work for them. */
INLINE void share_rows(void (*run)(void *, int64_t, int64_t), void *data, int64_t rows,
                       int64_t width, Parallel *parallel, int64_t threads) {
    int64_t parts = rows * width / WORTH_SHARING;
    parts = parts < threads ? parts : threads;
    parts = parts < rows ? parts : rows;
    Share s = {run, data, rows, parts, 0};
#if defined(__GNUC__)
    if (parallel && parts > 1) { /* a team of another size would end threads, or begin some */
        parallel(take, &s, (unsigned)threads, 0);
        return;
    }
#endif
    run(data, 0, rows);
}

/* For x <= 0, to about an ulp: x = n ln 2 + r, e^x = 2^n (1 + p(r)). */
INLINE void exponential(float x, float *power, float *p) {
    union { float real; uint32_t bits; } shifted, scale;
    x = x < -87.0f ? -87.0f : x;
    shifted.real = x * 1.44269504f + 12582912.0f; /* rounds to a whole number in the low bits */
    const float n = shifted.real - 12582912.0f;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float sum = 1.9841270e-4f;
    sum = sum * r + 1.3888889e-3f;
    sum = sum * r + 8.3333333e-3f;
    sum = sum * r + 4.1666667e-2f;
    sum = sum * r + 1.6666667e-1f;
    sum = sum * r + 0.5f;
    scale.bits = (shifted.bits << 23) + 0x3f800000u;
    *power = scale.real;
    *p = sum * r * r + r;
}

INLINE float magnitude(float x) { return x < 0.0f ? -x : x; }

INLINE float logistic(float x) {
    float power, p;
    exponential(-magnitude(x), &power, &p);
    const float e = power + power * p;
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

INLINE float hyperbolic(float x) {
    float power, p;
    exponential(-2.0f * magnitude(x), &power, &p);
    const float m = power * p + (power - 1.0f); /* e^-2|x| - 1 */
    return (x < 0.0f ? m : -m) / (2.0f + m);
}

#endif
