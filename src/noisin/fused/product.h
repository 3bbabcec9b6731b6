/* A matrix product whose second matrix is packed: the few rows of a step with one weight. */

#ifndef NOISIN_PRODUCT_H
#define NOISIN_PRODUCT_H

#include "numbers.h"

/* C = A B + beta C, by rows and without gaps; B as `product_pack` wrote it. */
typedef struct {
    int64_t rows, columns, inner;
    const float *a, *b; /* [rows,inner] [inner,columns] */
    float beta;
    float *c;           /* [rows,columns] */
    Parallel *parallel; /* or NULL: one thread */
    int64_t threads;
} Product;

/* Whether this processor has what makes it fast; without that, another library must multiply. */
PUBLIC int64_t product_serves(void);
PUBLIC int64_t product_size(void);
PUBLIC void product_pack(int64_t inner, int64_t columns, const float *b, int64_t step_inner,
                         int64_t step_columns, float *packed);
PUBLIC void product(const Product *p);

#endif
