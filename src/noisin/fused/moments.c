/* Moments of tanh and of the logistic sigmoid for normal numbers, and a recurrence that carries mean
   and variance, forward and back, in float32. noisin.propagation has the formulas.

   The functions of one step do what a step does besides its matrix products, as those of
   recurrence.c do; noisin.propagated is their twin in torch's operations. A pair of pointers is a
   mean and a variance.

   Letters: B sequences, H hidden units, G gates. */

#include "squash.h"

PUBLIC void squash(int64_t form, int64_t size, float half, const float *mean,
                   const float *variance, float *out, float *spread) {
    squash_block(form, size, half, mean, variance, out, spread);
}

PUBLIC CLONES void squash_back(int64_t form, int64_t size, float half, const float *mean,
                               const float *variance, const float *of_out,
                               const float *of_spread, float *of_mean, float *of_variance) {
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t n = size - start < BLOCK ? size - start : BLOCK;
        const float *dm = of_out + start, *restrict dv = of_spread + start;
        float *to_m = of_mean + start, *restrict to_v = of_variance + start;
        Block y;
        slopes_block(form, n, half, mean + start, variance + start, &y);
        EACH(j, n) {
            to_m[j] = ARRIVED_M(y, dm[j], dv[j]);
            to_v[j] = ARRIVED_V(y, dm[j], dv[j]);
        }
    }
}

/* Noise of mean 0: V becomes own V + square E^2 + plain, by unit. */
typedef struct {
    const float *own, *square, *plain; /* NULL: no noise */
} Spread;

typedef struct {
    int64_t batch, units;        /* B, H */
    int64_t first, direction;    /* the step that comes first, and 1 or -1 */
    int64_t cell, form;          /* ELMAN, GRU or LSTM; MIXTURE, … */
    int64_t gates_size;          /* G*H */
    int64_t sigmoid;             /* of an Elman cell: tanh if 0 */
    int64_t noisy_weight;        /* whether variance products see E[z]^2 beside V[z] */
    const float *h0[2], *c0[2];  /* [B,H] */
    const float *bias;           /* [G*H] b_hh or NULL */
    float *gates[2];             /* [T,B,G*H] in: W_ih x + b_ih; out: what is squashed */
    float *inner[2];             /* [T,B,H] W_hn h + b_hn of a GRU */
    float *cells[2], *states[2]; /* [T,B,H] */
    Spread recurrent, hidden, candidate;
    float *product[2];           /* [B,G*H] of W_hh z_{t-1} */
    float *seen[2];              /* [B,H], the variance [B,H] or [B,2H]; back: what arrived there */
    const float *grad_out[2];    /* [T,B,H] */
    float *grad_state[2];        /* [B,H] in and out */
    float *grad_cell[2];         /* [B,H] */
    float *grad_gates[2];        /* [T,B,G*H] of W_hh z + b_hh, and of W_ih x + b_ih, but */
    float *grad_new[2];          /* [T,B,H] of W_in x + b_in of a GRU */
    Parallel *parallel;
    int64_t threads;
    float scale;                 /* of the mean that the recurrent product sees */
} Propagation;

PUBLIC int64_t propagation_size(void) { return sizeof(Propagation); }

INLINE void spread_out(Spread noise, int64_t start, int64_t n, const float *mean, float *variance) {
    if (!noise.own) return;
    const float *own = noise.own + start, *restrict square = noise.square + start;
    const float *plain = noise.plain + start;
    EACH(j, n) variance[j] = own[j] * variance[j] + square[j] * mean[j] * mean[j] + plain[j];
}

INLINE void spread_back(Spread noise, int64_t start, int64_t n, const float *mean, float *of_mean,
                        float *of_variance) {
    if (!noise.own) return;
    const float *own = noise.own + start, *restrict square = noise.square + start;
    EACH(j, n) {
        of_mean[j] += 2.0f * square[j] * mean[j] * of_variance[j];
        of_variance[j] *= own[j];
    }
}

/* What the step before t left behind, mean (0) or variance (1). */
INLINE const float *left(const Propagation *p, float *const all[2], const float *const initial[2],
                         int64_t t, int64_t b, int which) {
    const int64_t H = p->units;
    if (t == p->first) return initial[which] + b * H;
    return all[which] + ((t - p->direction) * p->batch + b) * H;
}

INLINE void emit_block(const Propagation *p, int64_t at, int64_t start, int64_t n) {
    spread_out(p->hidden, start, n, p->states[0] + at, p->states[1] + at);
}

/* W_ih x + b_ih + W_hh z + b_hh of one gate, the bias that of the product. */
INLINE void add_up(const Propagation *p, int64_t t, int64_t b, int64_t at, int64_t n) {
    const int64_t GH = p->gates_size, row = (t * p->batch + b) * GH + at;
    const float *um = p->product[0] + b * GH + at, *uv = p->product[1] + b * GH + at;
    float *mean = p->gates[0] + row, *variance = p->gates[1] + row;
    EACH(j, n) mean[j] += um[j], variance[j] += uv[j];
    if (p->bias) {
        const float *bias = p->bias + at;
        EACH(j, n) mean[j] += bias[j];
    }
}

CLONES static void rnn_forward(const Propagation *p, int64_t t, int64_t b) {
    const int64_t H = p->units, row = (t * p->batch + b) * H;
    float *m = p->gates[0] + row, *v = p->gates[1] + row;
    add_up(p, t, b, 0, H);
    squash_block(p->form, H, p->sigmoid ? 0.5f : 1.0f, m, v, p->states[0] + row,
                 p->states[1] + row);
    emit_block(p, row, 0, H);
}

CLONES static void rnn_backward(const Propagation *p, int64_t t, int64_t b, float *of_m,
                                float *of_v) {
    const int64_t H = p->units, row = (t * p->batch + b) * H;
    for (int64_t start = 0; start < H; start += BLOCK) {
        const int64_t n = H - start < BLOCK ? H - start : BLOCK, at = row + start;
        const float *dm = of_m + start, *restrict dv = of_v + start;
        float *to_m = p->grad_gates[0] + at, *restrict to_v = p->grad_gates[1] + at;
        Block y;
        slopes_block(p->form, n, p->sigmoid ? 0.5f : 1.0f, p->gates[0] + at, p->gates[1] + at, &y);
        EACH(j, n) {
            to_m[j] = ARRIVED_M(y, dm[j], dv[j]);
            to_v[j] = ARRIVED_V(y, dm[j], dv[j]);
        }
    }
    memset(p->grad_state[0] + b * H, 0, H * sizeof(float));
    memset(p->grad_state[1] + b * H, 0, H * sizeof(float));
}

CLONES static void lstm_forward(const Propagation *p, int64_t t, int64_t b) {
    const int64_t H = p->units, row = t * p->batch + b;
    const float *old_m = left(p, p->cells, p->c0, t, b, 0);
    const float *old_v = left(p, p->cells, p->c0, t, b, 1);
    for (int64_t start = 0; start < H; start += BLOCK) {
        const int64_t n = H - start < BLOCK ? H - start : BLOCK, at = row * H + start;
        float m[4][BLOCK], v[4][BLOCK];
        for (int k = 0; k < 4; k++) {
            const int64_t gate = row * 4 * H + k * H + start;
            add_up(p, t, b, k * H + start, n);
            squash_block(p->form, n, k == 2 ? 1.0f : 0.5f, p->gates[0] + gate,
                         p->gates[1] + gate, m[k], v[k]);
        }
        spread_out(p->candidate, start, n, m[2], v[2]);
        const float *cm = old_m + start, *restrict cv = old_v + start;
        float *to_m = p->cells[0] + at, *restrict to_v = p->cells[1] + at;
        float *hm = p->states[0] + at, *restrict hv = p->states[1] + at;
        EACH(j, n) {
            const float i = m[0][j], f = m[1][j], g = m[2][j];
            to_m[j] = f * cm[j] + i * g;
            to_v[j] = v[1][j] * cm[j] * cm[j] + (f * f + v[1][j]) * cv[j] + v[0][j] * g * g +
                      (i * i + v[0][j]) * v[2][j];
        }
        squash_block(p->form, n, 1.0f, to_m, to_v, m[0], v[0]);
        EACH(j, n) {
            const float bounded = m[0][j], o = m[3][j];
            hm[j] = o * bounded;
            hv[j] = v[3][j] * bounded * bounded + (o * o + v[3][j]) * v[0][j];
        }
        emit_block(p, at, start, n);
    }
}

CLONES static void lstm_backward(const Propagation *p, int64_t t, int64_t b, float *of_m,
                                 float *of_v) {
    const int64_t H = p->units, row = t * p->batch + b;
    const float *old_m = left(p, p->cells, p->c0, t, b, 0);
    const float *old_v = left(p, p->cells, p->c0, t, b, 1);
    for (int64_t start = 0; start < H; start += BLOCK) {
        const int64_t n = H - start < BLOCK ? H - start : BLOCK, at = row * H + start;
        const int64_t gate = row * 4 * H + start;
        const float *dhm = of_m + start, *restrict dhv = of_v + start;
        const float *cm = old_m + start, *restrict cv = old_v + start;
        float *carry_m = p->grad_cell[0] + b * H + start;
        float *carry_v = p->grad_cell[1] + b * H + start;
        float *to_m = p->grad_gates[0] + gate, *to_v = p->grad_gates[1] + gate;
        float ngm[BLOCK], ngv[BLOCK], dgm[BLOCK], dgv[BLOCK];
        Block i, f, g, o, c;
        slopes_block(p->form, n, 0.5f, p->gates[0] + gate, p->gates[1] + gate, &i);
        slopes_block(p->form, n, 0.5f, p->gates[0] + gate + H, p->gates[1] + gate + H, &f);
        slopes_block(p->form, n, 1.0f, p->gates[0] + gate + 2 * H, p->gates[1] + gate + 2 * H, &g);
        slopes_block(p->form, n, 0.5f, p->gates[0] + gate + 3 * H, p->gates[1] + gate + 3 * H, &o);
        slopes_block(p->form, n, 1.0f, p->cells[0] + at, p->cells[1] + at, &c);
        memcpy(ngm, g.out, n * sizeof(float));
        memcpy(ngv, g.spread, n * sizeof(float));
        spread_out(p->candidate, start, n, ngm, ngv);
        EACH(j, n) { /* h = o tanh c */
            const float dm = dhm[j], dv = dhv[j], om = o.out[j], ov = o.spread[j];
            const float bm = c.out[j], bv = c.spread[j];
            const float of_o = dm * bm + 2.0f * om * bv * dv, of_ov = dv * (bm * bm + bv);
            to_m[3 * H + j] = ARRIVED_M(o, of_o, of_ov);
            to_v[3 * H + j] = ARRIVED_V(o, of_o, of_ov);
            const float of_b = dm * om + 2.0f * ov * bm * dv, of_bv = dv * (om * om + ov);
            carry_m[j] += ARRIVED_M(c, of_b, of_bv);
            carry_v[j] += ARRIVED_V(c, of_b, of_bv);
        }
        EACH(j, n) { /* c = f c + i g */
            const float dm = carry_m[j], dv = carry_v[j];
            const float im = i.out[j], iv = i.spread[j], fm = f.out[j], fv = f.spread[j];
            const float of_i = dm * ngm[j] + 2.0f * im * ngv[j] * dv;
            const float of_iv = dv * (ngm[j] * ngm[j] + ngv[j]);
            to_m[j] = ARRIVED_M(i, of_i, of_iv);
            to_v[j] = ARRIVED_V(i, of_i, of_iv);
            const float of_f = dm * cm[j] + 2.0f * fm * cv[j] * dv;
            const float of_fv = dv * (cm[j] * cm[j] + cv[j]);
            to_m[H + j] = ARRIVED_M(f, of_f, of_fv);
            to_v[H + j] = ARRIVED_V(f, of_f, of_fv);
            dgm[j] = dm * im + 2.0f * iv * ngm[j] * dv;
            dgv[j] = dv * (im * im + iv);
            carry_m[j] = dm * fm + 2.0f * fv * cm[j] * dv;
            carry_v[j] = dv * (fm * fm + fv);
        }
        spread_back(p->candidate, start, n, ngm, dgm, dgv);
        EACH(j, n) {
            to_m[2 * H + j] = ARRIVED_M(g, dgm[j], dgv[j]);
            to_v[2 * H + j] = ARRIVED_V(g, dgm[j], dgv[j]);
        }
    }
    memset(p->grad_state[0] + b * H, 0, H * sizeof(float));
    memset(p->grad_state[1] + b * H, 0, H * sizeof(float));
}

CLONES static void gru_forward(const Propagation *p, int64_t t, int64_t b) {
    const int64_t H = p->units, row = t * p->batch + b;
    const float *old_m = left(p, p->states, p->h0, t, b, 0);
    const float *old_v = left(p, p->states, p->h0, t, b, 1);
    for (int64_t start = 0; start < H; start += BLOCK) {
        const int64_t n = H - start < BLOCK ? H - start : BLOCK, at = row * H + start;
        const int64_t gate = row * 3 * H + start, last = 2 * H + start;
        float m[3][BLOCK], v[3][BLOCK];
        for (int k = 0; k < 2; k++) {
            add_up(p, t, b, k * H + start, n);
            squash_block(p->form, n, 0.5f, p->gates[0] + gate + k * H, p->gates[1] + gate + k * H,
                         m[k], v[k]);
        }
        const float *um = p->product[0] + b * 3 * H + last;
        const float *uv = p->product[1] + b * 3 * H + last;
        float *wm = p->inner[0] + at, *restrict wv = p->inner[1] + at;
        float *nm = p->gates[0] + row * 3 * H + last, *restrict nv = p->gates[1] + row * 3 * H + last;
        EACH(j, n) wm[j] = um[j], wv[j] = uv[j];
        if (p->bias) EACH(j, n) wm[j] += p->bias[last + j];
        EACH(j, n) { /* a + r u */
            const float r = m[0][j], rv = v[0][j];
            nm[j] += r * wm[j];
            nv[j] += rv * wm[j] * wm[j] + (r * r + rv) * wv[j];
        }
        squash_block(p->form, n, 1.0f, nm, nv, m[2], v[2]);
        spread_out(p->candidate, start, n, m[2], v[2]);
        const float *sm = old_m + start, *restrict sv = old_v + start;
        float *hm = p->states[0] + at, *restrict hv = p->states[1] + at;
        EACH(j, n) { /* z s + (1 - z) n */
            const float z = m[1][j], zv = v[1][j], gap = sm[j] - m[2][j];
            hm[j] = m[2][j] + z * gap;
            hv[j] = zv * gap * gap + (z * z + zv) * sv[j] +
                    ((1.0f - z) * (1.0f - z) + zv) * v[2][j];
        }
        emit_block(p, at, start, n);
    }
}

CLONES static void gru_backward(const Propagation *p, int64_t t, int64_t b, float *of_m,
                                float *of_v) {
    const int64_t H = p->units, row = t * p->batch + b;
    const float *old_m = left(p, p->states, p->h0, t, b, 0);
    const float *old_v = left(p, p->states, p->h0, t, b, 1);
    for (int64_t start = 0; start < H; start += BLOCK) {
        const int64_t n = H - start < BLOCK ? H - start : BLOCK, at = row * H + start;
        const int64_t gate = row * 3 * H + start;
        const float *dhm = of_m + start, *dhv = of_v + start;
        const float *sm = old_m + start, *restrict sv = old_v + start;
        const float *wm = p->inner[0] + at, *restrict wv = p->inner[1] + at;
        float *carry_m = p->grad_state[0] + b * H + start;
        float *carry_v = p->grad_state[1] + b * H + start;
        float *um = p->grad_gates[0] + gate, *uv = p->grad_gates[1] + gate;
        float *am = p->grad_new[0] + at, *av = p->grad_new[1] + at;
        float nm[BLOCK], nv[BLOCK], dnm[BLOCK], dnv[BLOCK];
        Block r, z, c;
        slopes_block(p->form, n, 0.5f, p->gates[0] + gate, p->gates[1] + gate, &r);
        slopes_block(p->form, n, 0.5f, p->gates[0] + gate + H, p->gates[1] + gate + H, &z);
        slopes_block(p->form, n, 1.0f, p->gates[0] + gate + 2 * H, p->gates[1] + gate + 2 * H, &c);
        memcpy(nm, c.out, n * sizeof(float));
        memcpy(nv, c.spread, n * sizeof(float));
        spread_out(p->candidate, start, n, nm, nv);
        EACH(j, n) { /* z s + (1 - z) n */
            const float dm = dhm[j], dv = dhv[j], zm = z.out[j], zv = z.spread[j];
            const float rest = 1.0f - zm, gap = sm[j] - nm[j], twice = 2.0f * zv * gap * dv;
            const float of_z = dm * gap + 2.0f * dv * (zm * sv[j] - rest * nv[j]);
            const float of_zv = dv * (gap * gap + sv[j] + nv[j]);
            um[H + j] = ARRIVED_M(z, of_z, of_zv);
            uv[H + j] = ARRIVED_V(z, of_z, of_zv);
            carry_m[j] = dm * zm + twice;
            carry_v[j] = dv * (zm * zm + zv);
            dnm[j] = dm * rest - twice;
            dnv[j] = dv * (rest * rest + zv);
        }
        spread_back(p->candidate, start, n, nm, dnm, dnv);
        EACH(j, n) { /* a + r u */
            const float dm = ARRIVED_M(c, dnm[j], dnv[j]), dv = ARRIVED_V(c, dnm[j], dnv[j]);
            const float rm = r.out[j], rv = r.spread[j];
            am[j] = dm;
            av[j] = dv;
            um[2 * H + j] = dm * rm + 2.0f * rv * wm[j] * dv;
            uv[2 * H + j] = dv * (rm * rm + rv);
            const float of_r = dm * wm[j] + 2.0f * rm * wv[j] * dv;
            const float of_rv = dv * (wm[j] * wm[j] + wv[j]);
            um[j] = ARRIVED_M(r, of_r, of_rv);
            uv[j] = ARRIVED_V(r, of_r, of_rv);
        }
    }
}

/* What the recurrent product sees of z_{t-1}. */
CLONES static void see(const Propagation *p, int64_t t, int64_t b) {
    const int64_t H = p->units, wide = p->noisy_weight ? 2 * H : H;
    const float *m = left(p, p->states, p->h0, t, b, 0);
    const float *v = left(p, p->states, p->h0, t, b, 1);
    float *to_m = p->seen[0] + b * H, *restrict to_v = p->seen[1] + b * wide;
    EACH(j, H) to_m[j] = p->scale * m[j], to_v[j] = v[j];
    spread_out(p->recurrent, 0, H, m, to_v);
    if (p->noisy_weight) EACH(j, H) to_v[H + j] = m[j] * m[j];
}

/* grad_state += what comes back through that. */
CLONES static void send_back(const Propagation *p, int64_t t, int64_t b) {
    const int64_t H = p->units, wide = p->noisy_weight ? 2 * H : H;
    const float *m = left(p, p->states, p->h0, t, b, 0);
    float *sent_m = p->seen[0] + b * H, *sent_v = p->seen[1] + b * wide;
    float *carry_m = p->grad_state[0] + b * H, *restrict carry_v = p->grad_state[1] + b * H;
    EACH(j, H) sent_m[j] *= p->scale;
    if (p->noisy_weight) EACH(j, H) sent_m[j] += 2.0f * m[j] * sent_v[H + j];
    spread_back(p->recurrent, 0, H, m, sent_m, sent_v);
    EACH(j, H) carry_m[j] += sent_m[j], carry_v[j] += sent_v[j];
}

typedef struct {
    const Propagation *p;
    int64_t t;
} Turn;

static void rows_forward(void *turn, int64_t from, int64_t to) {
    const Propagation *p = ((const Turn *)turn)->p;
    const int64_t t = ((const Turn *)turn)->t;
    for (int64_t b = from; b < to; b++) {
        if (p->cell == LSTM) lstm_forward(p, t, b);
        if (p->cell == GRU) gru_forward(p, t, b);
        if (p->cell == ELMAN) rnn_forward(p, t, b);
    }
}

CLONES static void row_backward(const Propagation *p, int64_t t, int64_t b) {
    const int64_t H = p->units, row = (t * p->batch + b) * H;
    float *dm = p->grad_state[0] + b * H, *dv = p->grad_state[1] + b * H;
    if (p->grad_out[0]) EACH(j, H) dm[j] += p->grad_out[0][row + j];
    if (p->grad_out[1]) EACH(j, H) dv[j] += p->grad_out[1][row + j];
    spread_back(p->hidden, 0, H, p->states[0] + row, dm, dv);
    if (p->cell == LSTM) lstm_backward(p, t, b, dm, dv);
    if (p->cell == GRU) gru_backward(p, t, b, dm, dv);
    if (p->cell == ELMAN) rnn_backward(p, t, b, dm, dv);
}

static void rows_backward(void *turn, int64_t from, int64_t to) {
    const Turn *it = turn;
    for (int64_t b = from; b < to; b++) row_backward(it->p, it->t, b);
}

static void rows_see(void *turn, int64_t from, int64_t to) {
    const Turn *it = turn;
    for (int64_t b = from; b < to; b++) see(it->p, it->t, b);
}

static void rows_send_back(void *turn, int64_t from, int64_t to) {
    const Turn *it = turn;
    for (int64_t b = from; b < to; b++) send_back(it->p, it->t, b);
}

static void share(const Propagation *p, int64_t t, int64_t weight,
                  void (*run)(void *, int64_t, int64_t)) {
    Turn turn = {p, t};
    share_rows(run, &turn, p->batch, weight * p->units, p->parallel, p->threads);
}

/* Squashing takes as long as many units of other work. */
enum { HEAVY = 8, LIGHT = 1 };

PUBLIC void moments_see(const Propagation *p, int64_t t) { share(p, t, LIGHT, rows_see); }

PUBLIC void moments_forward(const Propagation *p, int64_t t) { share(p, t, HEAVY, rows_forward); }

PUBLIC void moments_backward(const Propagation *p, int64_t t) {
    share(p, t, HEAVY, rows_backward);
}

PUBLIC void moments_send_back(const Propagation *p, int64_t t) {
    share(p, t, LIGHT, rows_send_back);
}
