/* A recurrence through time, forward and back, in float32.

   Plain C, without a header of torch or of Python: noisin.fused.compiled loads it and describes the
   buffers of a call in a Pass. The functions of one step do what a step does besides its matrix
   products; each has a twin in torch's operations in noisin.fused.eager, which says what it
   computes and runs where this file was not compiled. The functions of a whole walk through time
   also take the products, by a function they are handed or by product.c. What sequences do at a step
   is shared among threads, where a function that runs them is handed over; their number does not
   change a bit.

   Letters: T steps, B sequences, H hidden units, P size of h (H without a projection), G gates. */

#include "pass.h"

/* What the caller must agree on. */
PUBLIC int64_t pass_size(void) { return sizeof(Pass); }

#if defined(_WIN32)
/* What an extension of Python is linked with; this one is loaded without being imported. */
PUBLIC void *PyInit__recurrence(void) { return NULL; }
#endif

INLINE const float *now(Noise noise, int64_t t, int64_t row, int64_t width) {
    return noise.at ? noise.at + t * noise.stride + row * width : NULL;
}

/* What the step before t left behind. */
INLINE const float *before(const Pass *p, const float *all, const float *initial, int64_t t,
                           int64_t width) {
    return t == p->first ? initial : all + (t - p->direction) * p->batch * width;
}

INLINE int ended(const Pass *p, int64_t t, int64_t row) {
    return p->lengths && t >= p->lengths[row];
}

INLINE void perturb(float *x, const float *factor, const float *offset, int64_t size) {
    if (factor) EACH(j, size) x[j] *= factor[j];
    if (offset) EACH(j, size) x[j] += offset[j];
}

/* The old value where kept is 1 and the new one where it is 0, exactly. */
INLINE float mixed(float new, float old, float kept) {
    const float change = kept * (old - new), rest = (1 - kept) * (old - new);
    return kept < 0.5f ? new + change : old - rest;
}

CLONES static void lstm_forward(const Pass *p, int64_t t, const float *product, int64_t from,
                                int64_t to) {
    const int64_t H = p->hidden, B = p->batch;
    const float *cells_before = before(p, p->cells, p->c0, t, H);
    for (int64_t b = from; b < to; b++) {
        const int64_t row = t * B + b;
        if (ended(p, t, b)) {
            memcpy(p->cells + row * H, cells_before + b * H, H * sizeof(float));
            memset(p->extra + row * H, 0, H * sizeof(float));
            memset(p->inner + b * H, 0, H * sizeof(float));
            continue;
        }
        const float *factor = now(p->candidate_factor, t, b, H);
        const float *offset = now(p->candidate_offset, t, b, H);
        const float *kept = now(p->cell_kept, t, b, H);
        for (int64_t start = 0; start < H; start += BLOCK) {
            const int64_t n = H - start < BLOCK ? H - start : BLOCK;
            float *i = p->gates + row * 4 * H + start, *restrict f = i + H;
            float *g = f + H, *restrict o = g + H;
            const float *ui = product + b * 4 * H + start, *restrict uf = ui + H;
            const float *ug = uf + H, *restrict uo = ug + H;
            const float *old = cells_before + b * H + start;
            float *c = p->cells + row * H + start;
            float *squashed = p->extra + row * H + start;
            float *h = p->inner + b * H + start;
            float new[BLOCK];
            float *gates[] = {i, f, g, o};
            for (int k = 0; k < 4; k++) {
                perturb(gates[k], NULL, p->bias ? p->bias + k * H + start : NULL, n);
            }
            EACH(j, n) {
                i[j] = logistic(i[j] + ui[j]);
                f[j] = logistic(f[j] + uf[j]);
                o[j] = logistic(o[j] + uo[j]);
                g[j] = new[j] = hyperbolic(g[j] + ug[j]);
            }
            perturb(new, factor ? factor + start : NULL, offset ? offset + start : NULL, n);
            EACH(j, n) {
                const float cell = f[j] * old[j] + i[j] * new[j];
                const float bounded = hyperbolic(cell);
                c[j] = cell;
                squashed[j] = bounded;
                h[j] = o[j] * bounded;
            }
            if (kept) EACH(j, n) c[j] = mixed(c[j], old[j], kept[start + j]);
        }
    }
}

CLONES static void lstm_backward(const Pass *p, int64_t t, int64_t from, int64_t to) {
    const int64_t H = p->hidden, B = p->batch;
    const float *cells_before = before(p, p->cells, p->c0, t, H);
    for (int64_t b = from; b < to; b++) {
        const int64_t row = t * B + b;
        float *dc = p->grad_cell + b * H;
        if (ended(p, t, b)) {
            memset(p->grad_gates + row * 4 * H, 0, 4 * H * sizeof(float));
            if (p->grad_cells) memset(p->grad_cells + row * H, 0, H * sizeof(float));
            continue;
        }
        if (p->grad_cells) memcpy(p->grad_cells + row * H, dc, H * sizeof(float));
        const float *factor = now(p->candidate_factor, t, b, H);
        const float *offset = now(p->candidate_offset, t, b, H);
        const float *kept = now(p->cell_kept, t, b, H);
        for (int64_t start = 0; start < H; start += BLOCK) {
            const int64_t n = H - start < BLOCK ? H - start : BLOCK;
            const float *i = p->gates + row * 4 * H + start, *restrict f = i + H;
            const float *g = f + H, *restrict o = g + H;
            float *di = p->grad_gates + row * 4 * H + start, *restrict df = di + H;
            float *dg = df + H, *restrict d_o = dg + H;
            const float *old = cells_before + b * H + start;
            const float *squashed = p->extra + row * H + start;
            const float *dh = p->grad_inner + b * H + start;
            float *carry = dc + start;
            float new[BLOCK], skipped[BLOCK], slope[BLOCK];
            EACH(j, n) new[j] = g[j], skipped[j] = 0.0f, slope[j] = 1.0f;
            perturb(new, factor ? factor + start : NULL, offset ? offset + start : NULL, n);
            if (factor) EACH(j, n) slope[j] = factor[start + j];
            if (kept) EACH(j, n) {
                skipped[j] = kept[start + j] * carry[j];
                carry[j] -= skipped[j];
            }
            EACH(j, n) {
                const float bounded = squashed[j];
                const float cell = carry[j] + dh[j] * o[j] * (1.0f - bounded * bounded);
                d_o[j] = dh[j] * bounded * o[j] * (1.0f - o[j]);
                di[j] = cell * new[j] * i[j] * (1.0f - i[j]);
                df[j] = cell * old[j] * f[j] * (1.0f - f[j]);
                dg[j] = cell * i[j] * slope[j] * (1.0f - g[j] * g[j]);
                carry[j] = cell * f[j] + skipped[j];
            }
        }
    }
}

CLONES static void gru_forward(const Pass *p, int64_t t, const float *product, int64_t from,
                               int64_t to) {
    const int64_t H = p->hidden, B = p->batch;
    const float *states_before = before(p, p->states, p->h0, t, H);
    for (int64_t b = from; b < to; b++) {
        const int64_t row = t * B + b;
        if (ended(p, t, b)) continue;
        const float *factor = now(p->candidate_factor, t, b, H);
        const float *offset = now(p->candidate_offset, t, b, H);
        for (int64_t start = 0; start < H; start += BLOCK) {
            const int64_t size = H - start < BLOCK ? H - start : BLOCK;
            float *r = p->gates + row * 3 * H + start, *restrict z = r + H;
            float *n = z + H, *restrict v = p->extra + row * H + start;
            const float *ur = product + b * 3 * H + start, *restrict uz = ur + H;
            const float *un = uz + H, *restrict old = states_before + b * H + start;
            float *h = p->inner + b * H + start;
            float new[BLOCK];
            EACH(j, size) v[j] = un[j];
            perturb(v, NULL, p->inner_bias ? p->inner_bias + start : NULL, size);
            float *gates[] = {r, z, n};
            for (int k = 0; k < 3; k++) {
                perturb(gates[k], NULL, p->bias ? p->bias + k * H + start : NULL, size);
            }
            EACH(j, size) {
                r[j] = logistic(r[j] + ur[j]);
                z[j] = logistic(z[j] + uz[j]);
            }
            EACH(j, size) {
                n[j] = hyperbolic(n[j] + r[j] * v[j]);
                new[j] = n[j];
            }
            perturb(new, factor ? factor + start : NULL, offset ? offset + start : NULL, size);
            EACH(j, size) h[j] = new[j] + z[j] * (old[j] - new[j]);
        }
    }
}

CLONES static void gru_backward(const Pass *p, int64_t t, int64_t from, int64_t to) {
    const int64_t H = p->hidden, B = p->batch;
    const float *states_before = before(p, p->states, p->h0, t, H);
    for (int64_t b = from; b < to; b++) {
        const int64_t row = t * B + b;
        if (ended(p, t, b)) {
            memset(p->grad_gates + row * 3 * H, 0, 3 * H * sizeof(float));
            memset(p->grad_product + row * 3 * H, 0, 3 * H * sizeof(float));
            continue;
        }
        const float *factor = now(p->candidate_factor, t, b, H);
        const float *offset = now(p->candidate_offset, t, b, H);
        for (int64_t start = 0; start < H; start += BLOCK) {
            const int64_t size = H - start < BLOCK ? H - start : BLOCK;
            const float *r = p->gates + row * 3 * H + start, *restrict z = r + H;
            const float *n = z + H, *restrict v = p->extra + row * H + start;
            const float *old = states_before + b * H + start;
            const float *dh = p->grad_inner + b * H + start;
            float *dr = p->grad_gates + row * 3 * H + start, *restrict dz = dr + H;
            float *dn = dz + H;
            float *ur = p->grad_product + row * 3 * H + start, *restrict uz = ur + H;
            float *un = uz + H, *restrict carry = p->grad_state + b * H + start;
            float new[BLOCK], slope[BLOCK];
            EACH(j, size) new[j] = n[j], slope[j] = 1.0f;
            perturb(new, factor ? factor + start : NULL, offset ? offset + start : NULL, size);
            if (factor) EACH(j, size) slope[j] = factor[start + j];
            EACH(j, size) {
                const float inner = dh[j] * (1.0f - z[j]) * slope[j] * (1.0f - n[j] * n[j]);
                dn[j] = inner;
                un[j] = inner * r[j];
                dr[j] = ur[j] = inner * v[j] * r[j] * (1.0f - r[j]);
                dz[j] = uz[j] = dh[j] * (old[j] - new[j]) * z[j] * (1.0f - z[j]);
                carry[j] += dh[j] * z[j];
            }
        }
    }
}

CLONES static void rnn_forward(const Pass *p, int64_t t, const float *product, int64_t from,
                               int64_t to) {
    const int64_t H = p->hidden;
    for (int64_t b = from; b < to; b++) {
        float *a = p->gates + (t * p->batch + b) * H, *restrict h = p->inner + b * H;
        const float *u = product + b * H;
        perturb(a, NULL, p->bias, H);
        if (p->nonlinearity == 0) EACH(j, H) {
            a[j] = hyperbolic(a[j] + u[j]);
        }
        if (p->nonlinearity == 1) EACH(j, H) {
            const float x = a[j] + u[j];
            a[j] = x < 0.0f ? 0.0f : x; /* NaN stays */
        }
        if (p->nonlinearity == 2) EACH(j, H) {
            a[j] = logistic(a[j] + u[j]);
        }
        memcpy(h, a, H * sizeof(float));
    }
}

CLONES static void rnn_backward(const Pass *p, int64_t t, int64_t from, int64_t to) {
    const int64_t H = p->hidden;
    for (int64_t b = from; b < to; b++) {
        const float *h = p->gates + (t * p->batch + b) * H, *restrict dh = p->grad_inner + b * H;
        float *da = p->grad_gates + (t * p->batch + b) * H;
        if (p->nonlinearity == 0) EACH(j, H) da[j] = dh[j] * (1 - h[j] * h[j]);
        if (p->nonlinearity == 1) EACH(j, H) da[j] = h[j] <= 0 ? 0.0f : dh[j];
        if (p->nonlinearity == 2) EACH(j, H) da[j] = dh[j] * h[j] * (1 - h[j]);
    }
}

/* z_t: h_t under the noise of `hidden` and zoneout; behind the end the state stays. */
CLONES static void emit_rows(const Pass *p, int64_t t, int64_t from, int64_t to) {
    const int64_t P = p->state, B = p->batch;
    const float *states_before = before(p, p->states, p->h0, t, P);
    for (int64_t b = from; b < to; b++) {
        const int64_t row = t * B + b;
        const float *old = states_before + b * P;
        float *z = p->states + row * P;
        if (ended(p, t, b)) {
            memcpy(z, old, P * sizeof(float));
            memset(p->out + row * P, 0, P * sizeof(float));
            continue;
        }
        const float *kept = now(p->hidden_kept, t, b, P);
        memcpy(z, p->raw + b * P, P * sizeof(float));
        perturb(z, now(p->hidden_factor, t, b, P), now(p->hidden_offset, t, b, P), P);
        if (kept) EACH(j, P) z[j] = mixed(z[j], old[j], kept[j]);
        if (p->out != p->states) memcpy(p->out + row * P, z, P * sizeof(float));
    }
}

/* The gradient of h_t before noise, from what arrives at z_t; grad_state keeps what skips h_t. */
CLONES static void absorb_rows(const Pass *p, int64_t t, int64_t from, int64_t to) {
    const int64_t P = p->state, B = p->batch;
    for (int64_t b = from; b < to; b++) {
        const int64_t row = t * B + b;
        float *dh = p->grad_raw + b * P, *restrict carry = p->grad_state + b * P;
        if (ended(p, t, b)) {
            memset(dh, 0, P * sizeof(float));
            if (p->grad_states) memset(p->grad_states + row * P, 0, P * sizeof(float));
            continue;
        }
        const float *kept = now(p->hidden_kept, t, b, P);
        memcpy(dh, carry, P * sizeof(float));
        perturb(dh, NULL, p->grad_out ? p->grad_out + row * P : NULL, P);
        if (p->grad_states) memcpy(p->grad_states + row * P, dh, P * sizeof(float));
        memset(carry, 0, P * sizeof(float));
        if (kept) EACH(j, P) {
            carry[j] = kept[j] * dh[j];
            dh[j] -= carry[j];
        }
        perturb(dh, now(p->hidden_factor, t, b, P), NULL, P);
    }
}

/* seen = z_{t-1} under the noise of `recurrent`; back, grad_state += what comes back through it. */
CLONES static void see(const Pass *p, int64_t t, const float *z, int64_t from, int64_t to) {
    for (int64_t b = from; b < to; b++) {
        float *seen = p->seen + b * p->state;
        memcpy(seen, z + b * p->state, p->state * sizeof(float));
        perturb(seen, now(p->recurrent_factor, t, b, p->state),
                now(p->recurrent_offset, t, b, p->state), p->state);
    }
}

CLONES static void send_back(const Pass *p, int64_t t, int64_t from, int64_t to) {
    for (int64_t b = from; b < to; b++) {
        const float *sent = p->seen + b * p->state;
        const float *factor = now(p->recurrent_factor, t, b, p->state);
        float *carry = p->grad_state + b * p->state;
        EACH(j, p->state) carry[j] += sent[j] * factor[j];
    }
}

/* What sequences do at a step, one after another. */
enum { FORWARD = 1, EMIT = 2, ABSORB = 4, BACKWARD = 8, SEE = 16, SEND_BACK = 32 };

typedef struct {
    const Pass *pass;
    int64_t t;
    const float *given; /* the product of FORWARD, the state of SEE */
    int what;
} Turn;

static void rows(void *turn, int64_t from, int64_t to) {
    const Turn *s = turn;
    const Pass *p = s->pass;
    if (s->what & SEE) see(p, s->t, s->given, from, to);
    if (s->what & SEND_BACK) send_back(p, s->t, from, to);
    if (s->what & FORWARD) {
        if (p->cell == LSTM) lstm_forward(p, s->t, s->given, from, to);
        if (p->cell == GRU) gru_forward(p, s->t, s->given, from, to);
        if (p->cell == ELMAN) rnn_forward(p, s->t, s->given, from, to);
    }
    if (s->what & EMIT) emit_rows(p, s->t, from, to);
    if (s->what & ABSORB) absorb_rows(p, s->t, from, to);
    if (s->what & BACKWARD) {
        if (p->cell == LSTM) lstm_backward(p, s->t, from, to);
        if (p->cell == GRU) gru_backward(p, s->t, from, to);
        if (p->cell == ELMAN) rnn_backward(p, s->t, from, to);
    }
}

static void share(const Pass *p, int64_t t, const float *given, int what) {
    Turn turn = {p, t, given, what};
    share_rows(rows, &turn, p->batch, p->hidden, p->parallel, p->threads);
}

PUBLIC void forward(const Pass *p, int64_t t, const float *product) {
    share(p, t, product, FORWARD);
}

PUBLIC void emit(const Pass *p, int64_t t) { share(p, t, NULL, EMIT); }

PUBLIC void absorb(const Pass *p, int64_t t) { share(p, t, NULL, ABSORB); }

PUBLIC void backward(const Pass *p, int64_t t) { share(p, t, NULL, BACKWARD); }

/* c = a b + beta c, [B,inner] by [inner,columns] packed. */
static void multiply(const Pass *p, int64_t columns, int64_t inner, const float *a, const float *b,
                     float beta, float *c) {
    if (p->multiply) {
        p->multiply(BY_ROWS, PLAIN, PACKED, p->batch, columns, inner, a, inner, b, columns, beta,
                    c, columns);
        return;
    }
    const Product own = {p->batch, columns, inner, a, b, beta, c, p->parallel, p->threads};
    product(&own);
}

/* The functions of a step at every step, with the products between them. */
PUBLIC void walk_forward(const Pass *p) {
    const int64_t H = p->hidden, P = p->state;
    for (int64_t s = 0; s < p->steps; s++) {
        const int64_t t = p->first + s * p->direction;
        const float *z = before(p, p->states, p->h0, t, P);
        if (p->recurrent_factor.at || p->recurrent_offset.at) {
            share(p, t, z, SEE);
            z = p->seen;
        }
        multiply(p, p->gates_size, P, z, p->weight, 0.0f, p->product);
        share(p, t, p->product, p->projection ? FORWARD : FORWARD | EMIT);
        if (p->projection) {
            multiply(p, P, H, p->inner, p->projection, 0.0f, p->raw);
            share(p, t, NULL, EMIT);
        }
    }
}

PUBLIC void walk_backward(const Pass *p) {
    const int64_t B = p->batch, H = p->hidden, P = p->state, GH = p->gates_size;
    for (int64_t s = p->steps - 1; s >= 0; s--) {
        const int64_t t = p->first + s * p->direction;
        share(p, t, NULL, p->projection ? ABSORB : ABSORB | BACKWARD);
        if (p->projection) {
            multiply(p, H, P, p->grad_raw, p->projection, 0.0f, p->grad_inner);
            share(p, t, NULL, BACKWARD);
        }
        const int noisy = p->recurrent_factor.at != NULL;
        multiply(p, P, GH, p->grad_product + t * B * GH, p->weight, noisy ? 0.0f : 1.0f,
                 noisy ? p->seen : p->grad_state);
        if (noisy) share(p, t, NULL, SEND_BACK);
    }
}
