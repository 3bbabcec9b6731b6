/* The products of a recurrence, in float32: see product.h.

   B is packed in panels of PANEL columns, each a row of B after the other, zeros behind the last
   column. A tile of C, some rows by one panel, stays in registers while the sum runs; each number is
   the sum over its own row and column in one order, whatever the number of rows or of threads. */

#include "product.h"

enum { PANEL = 16, TILE = 6, PART = 256 }; /* columns; most rows; terms between two roundings */

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12

/* A row of a panel, which compilers keep in as many registers as it takes. */
typedef float Row __attribute__((vector_size(PANEL * sizeof(float)), aligned(4), may_alias));

INLINE void tile(const int rows, const Product *p, int64_t from, int64_t panel) {
    const int64_t K = p->inner, M = p->columns, left = M - panel * PANEL;
    const float *a = p->a + from * K, *b = p->b + panel * K * PANEL;
    float *c = p->c + from * M + panel * PANEL;
    Row sum[TILE] = {{0}};
    for (int64_t begin = 0; begin < K; begin += PART) { /* long sums in parts round less */
        const int64_t end = begin + PART < K ? begin + PART : K;
        Row part[TILE] = {{0}};
        for (int64_t k = begin; k < end; k++) {
            const Row of_b = *(const Row *)(b + k * PANEL);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) part[r] += a[r * K + k] * of_b;
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) sum[r] += part[r];
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        float *to = c + r * M;
        if (left < PANEL) { /* the panel goes on behind the last column */
            for (int64_t j = 0; j < left; j++)
                to[j] = p->beta == 0.0f ? sum[r][j] : sum[r][j] + p->beta * to[j];
        } else if (p->beta == 0.0f) {
            *(Row *)to = sum[r];
        } else {
            *(Row *)to = sum[r] + p->beta * *(const Row *)to;
        }
    }
}

CLONES static void panels(void *shared, int64_t from, int64_t to) {
    const Product *p = shared;
    const int64_t tiles = (p->rows + TILE - 1) / TILE; /* of nearly as many rows each */
    for (int64_t panel = from; panel < to; panel++) {
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t row = p->rows * i / tiles;
            switch (p->rows * (i + 1) / tiles - row) {
            case 1: tile(1, p, row, panel); break;
            case 2: tile(2, p, row, panel); break;
            case 3: tile(3, p, row, panel); break;
            case 4: tile(4, p, row, panel); break;
            case 5: tile(5, p, row, panel); break;
            case 6: tile(6, p, row, panel); break;
            }
        }
    }
}

PUBLIC int64_t product_serves(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

enum { AS_A_UNIT = 28 }; /* so many multiplications of a panel's row take the time of a unit */

PUBLIC void product(const Product *p) {
    share_rows(panels, (void *)p, (p->columns + PANEL - 1) / PANEL,
               p->rows * p->inner / AS_A_UNIT, p->parallel, p->threads);
}

#else

PUBLIC int64_t product_serves(void) { return 0; }

PUBLIC void product(const Product *p) {
    for (int64_t i = 0; i < p->rows; i++) {
        const float *a = p->a + i * p->inner;
        for (int64_t j = 0; j < p->columns; j++) {
            const float *b = p->b + j / PANEL * PANEL * p->inner + j % PANEL;
            float *to = p->c + i * p->columns + j, sum = 0.0f;
            for (int64_t k = 0; k < p->inner; k++) sum += a[k] * b[k * PANEL];
            *to = p->beta == 0.0f ? sum : sum + p->beta * *to;
        }
    }
}

#endif

PUBLIC int64_t product_size(void) { return sizeof(Product); }

PUBLIC void product_pack(int64_t inner, int64_t columns, const float *b, int64_t step_inner,
                         int64_t step_columns, float *packed) {
    for (int64_t begin = 0; begin < columns; begin += PANEL)
        for (int64_t k = 0; k < inner; k++)
            for (int64_t j = begin; j < begin + PANEL; j++)
                *packed++ = j < columns ? b[k * step_inner + j * step_columns] : 0.0f;
}
