/* A spatial step's passes over the gradients, as rows of few floats: S = (G^T H + H^T G) M, out = G P, and SGD's whole
 * step along G P. `kernels.py` calls them.
 *
 * A row of m floats is taken as V vectors, the last of which reaches into the next row. What is read or written there
 * too much is not used, or is written over by the next row; the last rows of a block are taken exactly.
 *
 * Rows come in blocks of a fixed length, whose sums are added in order, and every entry has a lane of its own: the bits
 * depend neither on the number of threads nor on that of the lanes, which is eight, or sixteen with AVX-512. Nor on the
 * compiler: a product and a sum are rounded once where FMA or `fmaf` says so, and nowhere else (-ffp-contract=off).
 */
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define FMA(a, b, c) _mm512_fmadd_ps(_mm512_set1_ps(a), b, c)
#define FITS __builtin_cpu_supports("avx512f")
#else
#define LANES 8
#define FMA(a, b, c) _mm256_fmadd_ps(_mm256_set1_ps(a), b, c)
#define FITS 1
#endif
#define BLOCK 2048
#define BLOCKS(n) (((n) + BLOCK - 1) / BLOCK)
#define LEFT(n, b) ((n) - (b) * BLOCK < BLOCK ? (n) - (b) * BLOCK : BLOCK)
#define WIDEST 16
#define ANY 64
#define STRIP 64
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef ptrdiff_t size;

INLINE vec load(const float *p, int count) {
  vec v = {0};
  memcpy(&v, p, sizeof(float) * count);
  return v;
}

/* Entries of a row's vector v. */
INLINE int width(int m, int v) { return m - v * LANES < LANES ? m - v * LANES : LANES; }

INLINE void times_rows(const float *G, const float *P, float *out, size from, size to, const int m, const int exact) {
  const int V = (m + LANES - 1) / LANES;
  vec K[WIDEST * 2];
  for (int i = 0; i < m; i++)
    for (int v = 0; v < V; v++) K[i * V + v] = load(P + i * m + v * LANES, width(m, v));
  for (size r = from; r < to; r++) {
    vec sum[2] = {{0}, {0}};
    for (int i = 0; i < m; i++)
      for (int v = 0; v < V; v++) sum[v] = FMA(G[r * m + i], K[i * V + v], sum[v]);
    for (int v = 0; v < V; v++) memcpy(out + r * m + v * LANES, &sum[v], sizeof(float) * (exact ? width(m, v) : LANES));
  }
}

INLINE void gram_rows(const float *G, const float *H, float *C, size from, size to, const int m, const int exact) {
  const int V = (m + LANES - 1) / LANES;
  vec sum[WIDEST * 2] = {{0}};
  for (size r = from; r < to; r++) {
    vec h[2];
    for (int v = 0; v < V; v++) h[v] = load(H + r * m + v * LANES, exact ? width(m, v) : LANES);
    for (int i = 0; i < m; i++)
      for (int v = 0; v < V; v++) sum[i * V + v] = FMA(G[r * m + i], h[v], sum[i * V + v]);
  }
  for (int i = 0; i < m; i++)
    for (int v = 0; v < V; v++)
      for (int j = 0; j < width(m, v); j++) C[i * m + v * LANES + j] += sum[i * V + v][j];
}

/* A row of one float is no row: fixed sums, whatever the lanes. */
static void gram_of_one(const float *G, const float *H, float *C, size n) {
  float sum[WIDEST] = {0};
  size r = 0;
  for (; r + WIDEST <= n; r += WIDEST)
    for (int j = 0; j < WIDEST; j++) sum[j] = fmaf(G[r + j], H[r + j], sum[j]);
  for (; r < n; r++) sum[0] = fmaf(G[r], H[r], sum[0]);
  for (int j = 0; j < WIDEST; j++) *C += sum[j];
}

static void times_one(const float *G, float P, float *out, size n) {
  for (size r = 0; r < n; r++) out[r] = G[r] * P;
}

/* Any other width: vectors run along the row, and the sums lie in memory. */
static void gram_of_any(const float *restrict G, const float *restrict H, float *restrict C, size n, int m) {
  for (size r = 0; r < n; r++)
    for (int i = 0; i < m; i++)
      for (int j = 0; j < m; j++) C[i * m + j] = fmaf(G[r * m + i], H[r * m + j], C[i * m + j]);
}

static void times_any(const float *restrict G, const float *restrict P, float *restrict out, size n, int m) {
  memset(out, 0, sizeof(float) * n * m);
  for (size r = 0; r < n; r++)
    for (int i = 0; i < m; i++)
      for (int j = 0; j < m; j++) out[r * m + j] = fmaf(G[r * m + i], P[i * m + j], out[r * m + j]);
}

/* A block of n rows; m and `exact` are constants where the functions above are unrolled. */
#define OF_WIDTH(rows, m) case m: rows(a, b, c, 0, wide, m, 0); rows(a, b, c, wide, n, m, 1); break;
#define BLOCK_OF(rows, one, any) \
  size wide = n - WIDEST; \
  if (wide < 0) wide = 0; \
  switch (m) { case 1: one; break; \
               OF_WIDTH(rows, 3) OF_WIDTH(rows, 4) OF_WIDTH(rows, 5) OF_WIDTH(rows, 7) OF_WIDTH(rows, 8) \
               OF_WIDTH(rows, 9) OF_WIDTH(rows, 16) default: any; }

static void times_block(const float *a, const float *b, float *c, size n, int m) {
  BLOCK_OF(times_rows, times_one(a, *b, c, n), times_any(a, b, c, n, m))
}
static void gram_block(const float *a, const float *b, float *c, size n, int m) {
  BLOCK_OF(gram_rows, gram_of_one(a, b, c, n), gram_of_any(a, b, c, n, m))
}

typedef struct { float rate, momentum, decay; int nesterov; } rule;

/* SGD's step along G P, rounded as in torch's calls. A strip of preconditioned gradients stays in the nearest cache.
 * v is NULL without momentum. */
static void sgd_block(const float *G, const float *P, float *restrict v, float *restrict p, size n, int m, const rule by) {
  float step[(STRIP + 1) * ANY];
  for (size s = 0; s < n; s += STRIP) {
    const size count = n - s < STRIP ? n - s : STRIP, at = s * m;
    times_block(G + at, P, step, count, m);
    for (size e = 0; e < count * m; e++) {
      float g = step[e];
      if (by.decay != 0) g = fmaf(p[at + e], by.decay, g);
      if (v) {
        v[at + e] = v[at + e] * by.momentum + g;
        g = by.nesterov ? fmaf(v[at + e], by.momentum, g) : v[at + e];
      }
      p[at + e] = fmaf(g, -by.rate, p[at + e]);
    }
  }
}

int fop_fits(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && FITS; }

/* Is the sum of the squares of each tensor's n entries at most that? Not if one is not finite. */
int fop_bounded(int tensors, float **T, const size *n, float most, int threads) {
  int well = 1;
  for (int t = 0; t < tensors && well; t++) {
    const float *const x = T[t];
    float sum = 0;
#pragma omp parallel for simd reduction(+ : sum) num_threads(threads) if (n[t] > 1 << 15)
    for (size e = 0; e < n[t]; e++) sum += x[e] * x[e];
    well = sum <= most;
  }
  return well;
}

/* P = M M^T for each of the layers, M, P: [m, m]. */
void fop_joint(int layers, float **M, float *P, int m) {
  for (int l = 0; l < layers; l++, P += m * m) {
    float transposed[ANY * ANY];
    for (int i = 0; i < m; i++)
      for (int j = 0; j < m; j++) transposed[j * m + i] = M[l][i * m + j];
    times_block(M[l], transposed, P, m, m);
  }
}

/* For each of the layers G: [rows, m], P: [m, m], out: [rows, m]. */
void fop_times(int layers, float **G, const float *P, float **out, const size *rows, int m, int threads) {
#pragma omp parallel num_threads(threads)
  for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
    for (size b = 0; b < BLOCKS(rows[l]); b++)
      times_block(G[l] + b * BLOCK * m, P + l * m * m, out[l] + b * BLOCK * m, LEFT(rows[l], b), m);
  }
}

/* For each of the layers G: [rows, m], P: [m, m], and the velocity v, NULL without momentum, and the parameter p:
 * [rows, m]. */
void fop_sgd(int layers, float **G, const float *P, float **v, float **p, const size *rows, int m, int threads,
             float rate, float momentum, float decay, int nesterov) {
  const rule by = {rate, momentum, decay, nesterov};
#pragma omp parallel num_threads(threads)
  for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
    for (size b = 0; b < BLOCKS(rows[l]); b++) {
      const size at = b * BLOCK * m;
      sgd_block(G[l] + at, P + l * m * m, v ? v[l] + at : NULL, p[l] + at, LEFT(rows[l], b), m, by);
    }
  }
}

/* For each of the layers G, H: [rows, m], M, S: [m, m]. Returns 0, or -1 without memory. */
int fop_slopes(int layers, float **G, float **H, float **M, float *S, const size *rows, int m, int threads) {
  size blocks = 1;
  for (int l = 0; l < layers; l++) blocks += BLOCKS(rows[l]);
  float *const parts = calloc(blocks, sizeof(float) * m * m), *sums = parts; /* a Gram matrix for each block */
  if (!parts) return -1;
#pragma omp parallel num_threads(threads)
  {
    float *part = parts;
    for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
      for (size b = 0; b < BLOCKS(rows[l]); b++)
        gram_block(G[l] + b * BLOCK * m, H[l] + b * BLOCK * m, part + b * m * m, LEFT(rows[l], b), m);
      part += BLOCKS(rows[l]) * m * m;
    }
  }
  for (int l = 0; l < layers; l++, S += m * m) {
    float C[ANY * ANY] = {0};
    for (size b = 0; b < BLOCKS(rows[l]); b++, sums += m * m)
      for (int e = 0; e < m * m; e++) C[e] += sums[e];
    for (int i = 0; i < m; i++)
      for (int j = 0; j <= i; j++) C[i * m + j] = C[j * m + i] = C[i * m + j] + C[j * m + i];
    times_block(C, M[l], S, m, m);
  }
  free(parts);
  return 0;
}
