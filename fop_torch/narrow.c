/* The two products of a spatial step, for rows of few floats: out = G P, and C = G^T H. `kernels.py` calls them.
 *
 * A row of m floats is taken as V vectors, the last of which reaches into the next row. What is read or written there
 * too much is not used, or is written over by the next row; the last rows of a block are taken exactly.
 *
 * Rows come in blocks of a fixed length, whose sums are added in order, and every entry has a lane of its own: the bits
 * depend neither on the number of threads nor on that of the lanes, which is eight, or sixteen with AVX-512.
 */
#include <stddef.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define FITS __builtin_cpu_supports("avx512f")
#else
#define LANES 8
#define FITS 1
#endif
#define BLOCK 2048
#define BLOCKS(n) (((n) + BLOCK - 1) / BLOCK)
#define LEFT(n, b) ((n) - (b) * BLOCK < BLOCK ? (n) - (b) * BLOCK : BLOCK)
#define WIDEST 16
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
      for (int v = 0; v < V; v++) sum[v] += G[r * m + i] * K[i * V + v];
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
      for (int v = 0; v < V; v++) sum[i * V + v] += G[r * m + i] * h[v];
  }
  for (int i = 0; i < m; i++)
    for (int v = 0; v < V; v++)
      for (int j = 0; j < width(m, v); j++) C[i * m + v * LANES + j] += sum[i * V + v][j];
}

/* A block of n rows; m and `exact` are constants where the functions above are unrolled. */
#define OF_WIDTH(rows, m) case m: rows(a, b, c, 0, wide, m, 0); rows(a, b, c, wide, n, m, 1); break;
#define BLOCK_OF(rows) \
  size wide = n - WIDEST; \
  if (wide < 0) wide = 0; \
  switch (m) { OF_WIDTH(rows, 3) OF_WIDTH(rows, 4) OF_WIDTH(rows, 5) OF_WIDTH(rows, 7) OF_WIDTH(rows, 8) \
               OF_WIDTH(rows, 9) OF_WIDTH(rows, 16) }

static void times_block(const float *a, const float *b, float *c, size n, int m) { BLOCK_OF(times_rows) }
static void gram_block(const float *a, const float *b, float *c, size n, int m) { BLOCK_OF(gram_rows) }

int fop_fits(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && FITS; }

/* For each of the layers G: [rows, m], P: [m, m], out: [rows, m]. */
void fop_times(int layers, float **G, const float *P, float **out, const size *rows, int m, int threads) {
#pragma omp parallel num_threads(threads)
  for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
    for (size b = 0; b < BLOCKS(rows[l]); b++)
      times_block(G[l] + b * BLOCK * m, P + l * m * m, out[l] + b * BLOCK * m, LEFT(rows[l], b), m);
  }
}

/* For each of the layers G, H: [rows, m], C: [m, m], zero; parts: zero too, [m, m] for each block of each layer. */
void fop_grams(int layers, float **G, float **H, float *C, float *parts, const size *rows, int m, int threads) {
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
  for (int l = 0; l < layers; l++, C += m * m)
    for (size b = 0; b < BLOCKS(rows[l]); b++, parts += m * m)
      for (int e = 0; e < m * m; e++) C[e] += parts[e];
}
