/* What a call of recurrence.c is told: the buffers of a walk through time and their sizes.

   Letters: T steps, B sequences, H hidden units, P size of h (H without a projection), G gates. */

#ifndef NOISIN_PASS_H
#define NOISIN_PASS_H

#include "product.h"

typedef struct {
    const float *at; /* NULL: no such noise */
    int64_t stride;  /* numbers from one step to the next; 0 if held */
} Noise;

/* C = A B + beta C; the arguments of cblas_sgemm_compute. Integers are wide, so that whatever width
   the library reads it finds the number. */
typedef void Multiply(int64_t layout, int64_t turn_a, int64_t turn_b, int64_t rows, int64_t columns,
                      int64_t inner, const float *a, int64_t step_a, const float *b, int64_t step_b,
                      float beta, float *c, int64_t step_c);

enum { BY_ROWS = 101, PLAIN = 111, PACKED = 151 };

typedef struct {
    int64_t batch, hidden, state;       /* B, H, P */
    int64_t steps, first, direction;    /* T, the step that comes first, and 1 or -1 */
    int64_t cell, gates_size;           /* ELMAN, GRU or LSTM; G*H */
    int64_t nonlinearity;               /* of an Elman cell: 0 tanh, 1 relu, 2 logistic sigmoid */
    const int64_t *lengths;             /* [B], or NULL: all sequences have T steps */
    const float *h0, *c0;               /* [B,P] [B,H] */
    const float *bias;                  /* [G*H] b_ih + b_hh, of a GRU b_hn apart, or NULL */
    const float *inner_bias;            /* [H] b_hn of a GRU, or NULL */
    float *gates;                       /* [T,B,G*H] in: W x; out: the gates' values */
    float *cells;                       /* [T,B,H] c_t of an LSTM as the next step sees it */
    float *extra;                       /* [T,B,H] tanh(c_t) of an LSTM, W_hn h + b_hn of a GRU */
    float *states;                      /* [T,B,P] z_t as the next step sees it */
    float *out;                         /* [T,B,P] z_t, 0 behind the end; may be `states` */
    float *inner;                       /* [B,H] h_t before a projection */
    float *raw;                         /* [B,P] h_t before noise; may be `inner` */
    Noise hidden_factor, hidden_offset; /* [T,B,P] */
    Noise candidate_factor, candidate_offset; /* [T,B,H] */
    Noise hidden_kept, cell_kept;       /* zoneout: 1 where the old value stays */
    const float *grad_out;              /* [T,B,P] or NULL */
    float *grad_state;                  /* [B,P] in and out: gradient of z_t, then of z_{t-1} */
    float *grad_cell;                   /* [B,H] likewise of c_t */
    float *grad_raw, *grad_inner;       /* [B,P] [B,H] */
    float *grad_gates;                  /* [T,B,G*H] gradient of W_ih x + b_ih */
    float *grad_product;                /* [T,B,G*H] of W_hh h + b_hh; may be `grad_gates` */
    float *grad_states, *grad_cells;    /* [T,B,P] [T,B,H] what arrived at z_t and c_t, or NULL */
    Parallel *parallel;                 /* or NULL: one thread */
    int64_t threads;
    /* of a walk alone */
    Multiply *multiply;                 /* or NULL: `product` multiplies */
    const float *weight, *projection;   /* W_hh, and W_hr or NULL, packed for the way of the walk */
    Noise recurrent_factor, recurrent_offset; /* [T,B,P] */
    float *product;                     /* [B,G*H] */
    float *seen;                        /* [B,P] z_{t-1} under the noise of `recurrent` */
} Pass;

#endif
