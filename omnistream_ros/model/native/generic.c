/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention of a streaming step on x86 CPUs in float32 arithmetic, and what every kind of cache needs:
 * turn the frame's queries and keys, write its keys and values, move older keys in time.
 *
 * Compiled twice, for AVX512F and for AVX2 with FMA; NAME() gives the functions their endings. The cache
 * holds float32 or, at half the memory, bfloat16, in the order of attention.c:
 *
 *     bfloat16  keys [token / 16][d / 2][16 tokens][2]    values [token / 2][d][2]
 *     float32   keys [token / 16][d][16 tokens]           values [token][d]
 *
 * bfloat16 is widened a chunk of tokens at a time, once for all queries. The work is done as there:
 * TILE tokens at a time for ROWS queries, with an online softmax, so that it stays in the first cache.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { D = 64, TILE = 64, CHUNK = 256, MAX_QUERIES = 480 };
typedef uint16_t bf16;
#define SCALE 0.18033688f /* log2(e) / sqrt(D): softmax by powers of two */

#ifdef __AVX512F__
#define NAME(x) x##_avx512
enum { LANES = 16, GROUP = 12, ROWS = 24 }; /* GROUP rows * 2 registers of sums fill the registers */
typedef __m512 vec;
typedef __m512i ivec;
#define V(operation) _mm512_##operation
#define I(operation) _mm512_##operation##_si512
#define SUM(v) _mm512_reduce_add_ps(v)
#define MAX(v) _mm512_reduce_max_ps(v)
#else
#define NAME(x) x##_avx2
enum { LANES = 8, GROUP = 6, ROWS = 24 };
typedef __m256 vec;
typedef __m256i ivec;
#define V(operation) _mm256_##operation
#define I(operation) _mm256_##operation##_si256
static inline float SUM(vec v) {
  float x[8], sum = 0;
  _mm256_storeu_ps(x, v);
  for (int i = 0; i < 8; i++) sum += x[i];
  return sum;
}
static inline float MAX(vec v) {
  float x[8], high = -INFINITY;
  _mm256_storeu_ps(x, v);
  for (int i = 0; i < 8; i++) high = x[i] > high ? x[i] : high;
  return high;
}
#endif

static inline float widen(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

static inline bf16 narrow(float x) { /* to nearest, ties to even; finite numbers */
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* `wide`: the numbers are float32. A constant wherever these are called, so it costs nothing. */
static inline float get(const void *p, long i, int wide) {
  return wide ? ((const float *)p)[i] : widen(((const bf16 *)p)[i]);
}

static inline void set(void *p, long i, float x, int wide) {
  if (wide) ((float *)p)[i] = x;
  else ((bf16 *)p)[i] = narrow(x);
}

static inline const void *at(const void *p, long i, int wide) {
  return (const char *)p + i * (wide ? 4 : 2);
}

/* Where channel i of token t stands, in one head's keys and values. */
static inline long key_at(long t, int i, int wide) {
  return t / 16 * 16 * D + (wide ? i * 16 + t % 16 : i / 2 * 32 + t % 16 * 2 + i % 2);
}

static inline long value_at(long t, int i, int wide) {
  return wide ? t * D + i : t / 2 * 2 * D + 2 * i + t % 2;
}

/* -- products and softmax ------------------------------------------------------------------------ */

/* sums[GROUP][2 registers] (+)= left[GROUP][depth] * right[depth][2 registers], which stand `next` apart. */
static inline __attribute__((always_inline)) void product(float *sums, long width, int add,
                                                          const float *left, long stride,
                                                          const float *right, long step, long next,
                                                          int depth) {
  vec sum[GROUP][2];
#pragma GCC unroll 12
  for (int r = 0; r < GROUP; r++) {
    sum[r][0] = add ? V(loadu_ps)(sums + r * width) : V(setzero_ps)();
    sum[r][1] = add ? V(loadu_ps)(sums + r * width + LANES) : V(setzero_ps)();
  }
  for (int i = 0; i < depth; i++) {
    vec a = V(loadu_ps)(right + i * step), b = V(loadu_ps)(right + i * step + next);
#pragma GCC unroll 12
    for (int r = 0; r < GROUP; r++) {
      vec x = V(set1_ps)(left[r * stride + i]);
      sum[r][0] = V(fmadd_ps)(x, a, sum[r][0]);
      sum[r][1] = V(fmadd_ps)(x, b, sum[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < GROUP; r++) {
    V(storeu_ps)(sums + r * width, sum[r][0]);
    V(storeu_ps)(sums + r * width + LANES, sum[r][1]);
  }
}

/* 2^x for x <= 0, to float32's own rounding; 2^-125 for what is smaller. NaN stays. */
static inline vec power_of_two(vec x) {
  x = V(max_ps)(V(set1_ps)(-125), x);
  const vec magic = V(set1_ps)(12582912); /* 1.5 * 2^23: the sum's last bits are x, rounded */
  vec whole = V(add_ps)(x, magic), f = V(sub_ps)(x, V(sub_ps)(whole, magic));
  vec y = V(set1_ps)(1.535336206e-4f);
  y = V(fmadd_ps)(y, f, V(set1_ps)(1.339887459e-3f));
  y = V(fmadd_ps)(y, f, V(set1_ps)(9.618437358e-3f));
  y = V(fmadd_ps)(y, f, V(set1_ps)(5.550332471e-2f));
  y = V(fmadd_ps)(y, f, V(set1_ps)(2.402264791e-1f));
  y = V(fmadd_ps)(y, f, V(set1_ps)(6.931472029e-1f));
  y = V(fmadd_ps)(y, f, V(set1_ps)(1));
#ifdef __AVX512F__
  __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(whole), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), exponent));
#else
  __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent));
#endif
}

/* Rows of scores to weights, in place, relative to the highest score so far, which is kept in `top`;
 * `total` is the sum of weights so far, LANES parts a row, and `out` what was summed up with them. */
static void softmax(float *scores, float *out, float *top, float *total, int rows, int tokens) {
  float shifts[ROWS];
  for (int r = 0; r < rows; r++) {
    vec high = V(set1_ps)(top[r]);
    for (int n = 0; n < tokens; n += LANES)
      high = V(max_ps)(high, V(loadu_ps)(scores + r * TILE + n));
    float highest = MAX(high);
    if (highest > top[r]) {
      vec fade = V(set1_ps)(exp2f((top[r] - highest) * SCALE));
      for (float *o = out + r * D; o < out + (r + 1) * D; o += LANES)
        V(storeu_ps)(o, V(mul_ps)(fade, V(loadu_ps)(o)));
      V(storeu_ps)(total + LANES * r, V(mul_ps)(fade, V(loadu_ps)(total + LANES * r)));
      top[r] = highest;
    }
    shifts[r] = highest * SCALE;
  }
  for (int r = 0; r < rows; r++) {
    vec shift = V(set1_ps)(shifts[r]), sum = V(loadu_ps)(total + LANES * r);
    for (float *s = scores + r * TILE; s < scores + r * TILE + tokens; s += LANES) {
      vec w = power_of_two(V(fmsub_ps)(V(loadu_ps)(s), V(set1_ps)(SCALE), shift));
      sum = V(add_ps)(sum, w);
      V(storeu_ps)(s, w);
    }
    V(storeu_ps)(total + LANES * r, sum);
  }
}

/* -- one head ---------------------------------------------------------------------------------------- */

/* Keys or values as they lie in bfloat16 to float32: pairs of neighbours become two rows. */
static void widen_rows(float *to, const bf16 *from, long pairs, int width) {
  for (long row = 0; row < pairs; row++, from += 2 * width, to += 2 * width)
    for (int i = 0; i < width; i += LANES) {
      ivec both = I(loadu)((const void *)(from + 2 * i));
      I(storeu)((void *)(to + i), V(slli_epi32)(both, 16));
      I(storeu)((void *)(to + width + i), I(and)(both, V(set1_epi32)((int)0xffff0000)));
    }
}

static inline __attribute__((always_inline)) void attend_head(
    void *result, const void *q, long stride, long result_stride, long queries, const void *keys,
    const void *values, long visible, const float *bias, long plain, int wide) {
  _Alignas(64) float packed[MAX_QUERIES * D], out[MAX_QUERIES * D], scores[ROWS * TILE];
  _Alignas(64) float top[MAX_QUERIES], total[MAX_QUERIES * LANES];
  _Alignas(64) float k_wide[CHUNK * D], v_wide[CHUNK * D];
  const long all = (queries + GROUP - 1) / GROUP * GROUP;
  memset(packed, 0, sizeof(float) * all * D);
  memset(out, 0, sizeof(float) * all * D);
  memset(total, 0, sizeof(float) * all * LANES);
  for (long m = 0; m < queries; m++)
    for (int i = 0; i < D; i++) packed[m * D + i] = get(q, m * stride + i, wide);
  for (long m = 0; m < all; m++) top[m] = -INFINITY;
  for (long begin = 0; begin < visible; begin += CHUNK) {
    const long end = visible - begin < CHUNK ? visible : begin + CHUNK;
    const void *k_here = at(keys, begin * D, wide), *v_here = at(values, begin * D, wide);
    const float *k_chunk = wide ? k_here : k_wide, *v_chunk = wide ? v_here : v_wide;
    if (!wide) { /* whole blocks: the cache has them */
      widen_rows(k_wide, k_here, (end - begin + 31) / 32 * D, 16);
      widen_rows(v_wide, v_here, (end - begin + 31) / 32 * 16, D);
    }
    for (long m = 0; m < all; m += ROWS) {
      const int rows = all - m < ROWS ? all - m : ROWS;
      for (long t = begin; t < end; t += TILE) {
        const float *k = k_chunk + (t - begin) * D, *v = v_chunk + (t - begin) * D;
        const int tokens = end - t < TILE ? end - t : TILE, padded = (tokens + 31) / 32 * 32;
        for (int n = 0; n < padded; n += 2 * LANES)
          for (int r = 0; r < rows; r += GROUP)
            product(scores + r * TILE + n, TILE, 0, packed + (m + r) * D, D, k + n / 16 * 16 * D, 16,
                    LANES == 16 ? 16 * D : LANES, D);
        if (plain < t + tokens || tokens < padded)
          for (float *s = scores; s < scores + rows * TILE; s += TILE) {
            for (long i = plain > t ? plain - t : 0; i < tokens; i++) s[i] += bias[t + i];
            for (long i = tokens; i < padded; i++) s[i] = -INFINITY;
          }
        softmax(scores, out + m * D, top + m, total + m * LANES, rows, padded);
        for (int c = 0; c < D; c += 2 * LANES)
          for (int r = 0; r < rows; r += GROUP)
            product(out + (m + r) * D + c, D, 1, scores + r * TILE, TILE, v + c, D, LANES, padded);
      }
    }
  }
  for (long m = 0; m < queries; m++) {
    float sum = SUM(V(loadu_ps)(total + m * LANES));
    for (int i = 0; i < D; i++) set(result, m * result_stride + i, out[m * D + i] / sum, wide);
  }
}

/* -- what Python calls -------------------------------------------------------------------------------
 *
 * One stream, one layer. q, k, v: element (token, head, channel) at token * stride + head * D + channel.
 * keys, values: the packed cache, `capacity` tokens (a multiple of 32) for each head. */

static inline __attribute__((always_inline)) void rotate(void *q, void *k, long stride,
                                                         const float *cosine, const float *sine,
                                                         long heads, long m, int wide) {
  const float *c = cosine + m * D, *s = sine + m * D;
  for (long h = 0; h < 2 * heads; h++) {
    void *x = (void *)at(h < heads ? q : k, m * stride + h % heads * D, wide);
    for (int i = 0; i < D / 2; i++) {
      float a = get(x, i, wide), b = get(x, i + D / 2, wide);
      set(x, i, a * c[i] + b * s[i], wide);
      set(x, i + D / 2, b * c[i + D / 2] + a * s[i + D / 2], wide);
    }
  }
}

/* Turn queries and keys of `tokens` tokens in place; cosine and sine (tokens, D), signs inside. */
void NAME(omnistream_rotate)(void *q, void *k, long stride, const float *cosine, const float *sine,
                             long heads, long tokens, int wide, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long m = 0; m < tokens; m++)
    if (wide) rotate(q, k, stride, cosine, sine, heads, m, 1);
    else rotate(q, k, stride, cosine, sine, heads, m, 0);
}

static inline __attribute__((always_inline)) void write(void *keys, void *values, const void *k,
                                                        const void *v, long stride, long tokens,
                                                        long first, int wide) {
  for (long m = 0; m < tokens; m++)
    for (int i = 0; i < D; i++) {
      set(keys, key_at(first + m, i, wide), get(k, m * stride + i, wide), wide);
      set(values, value_at(first + m, i, wide), get(v, m * stride + i, wide), wide);
    }
}

/* Keys and values of `tokens` tokens into the cache, from token `first` on. */
void NAME(omnistream_write)(void *keys, void *values, const void *k, const void *v, long stride,
                            long heads, long tokens, long capacity, long first, int wide, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long h = 0; h < heads; h++) {
    void *to_k = (void *)at(keys, h * capacity * D, wide);
    void *to_v = (void *)at(values, h * capacity * D, wide);
    const void *from_k = at(k, h * D, wide), *from_v = at(v, h * D, wide);
    if (wide) write(to_k, to_v, from_k, from_v, stride, tokens, first, 1);
    else write(to_k, to_v, from_k, from_v, stride, tokens, first, 0);
  }
}

static inline __attribute__((always_inline)) void turn(void *keys, const void *channels,
                                                       const float *cosine, const float *sine,
                                                       long pieces, long n, long still, long first,
                                                       int wide) {
  enum { T = D / 4 };
  for (long t = 0; t < pieces * n; t++) {
    const float *c = cosine + t / n * T, *s = sine + t / n * T;
    const long place = key_at(first + t, 3, wide); /* of the next channel but three: 64 further, in both */
    float x[T], y[T];
    for (int i = 0; i < T; i++) x[i] = y[i] = get(channels, t * T + i, wide);
    if (t % n >= still)
      for (int i = 0; i < T; i++) y[i] = x[i] * c[i] + x[(i + T / 2) % T] * s[i];
    for (int i = 0; i < T; i++) set(keys, place + 64 * i, y[i], wide);
  }
}

/* Every fourth channel of cached keys, from the fourth on: `channels` (heads, pieces * n, D / 4), each
 * head `apart` numbers after the last, turned piece by piece by cosine and sine (pieces, D / 4), but for
 * the first `still` tokens of each piece. */
void NAME(omnistream_turn)(void *keys, const void *channels, const float *cosine, const float *sine,
                           long heads, long apart, long pieces, long n, long still, long capacity,
                           long first, int wide, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long h = 0; h < heads; h++) {
    void *to = (void *)at(keys, h * capacity * D, wide);
    const void *from = at(channels, h * apart, wide);
    if (wide) turn(to, from, cosine, sine, pieces, n, still, first, 1);
    else turn(to, from, cosine, sine, pieces, n, still, first, 0);
  }
}

/* Softmax attention of `tokens` queries to the first `visible` tokens of the cache. Scores of tokens
 * from `plain` on get `bias` (by token, before the division by sqrt(D)) added. */
void NAME(omnistream_attend)(void *result, long result_stride, const void *q, long stride,
                             const void *keys, const void *values, long heads, long tokens,
                             long capacity, long visible, const float *bias, long plain, int wide,
                             int threads) {
  /* Queries of a head are split until all threads have the same work, or pieces get small. */
  long parts = (tokens + MAX_QUERIES - 1) / MAX_QUERIES;
  while (heads * parts % threads && heads * parts < 4 * threads && tokens / (parts + 1) >= GROUP) parts++;
  const long part = ((tokens + parts - 1) / parts + GROUP - 1) / GROUP * GROUP;
  parts = (tokens + part - 1) / part;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long unit = 0; unit < heads * parts; unit++) {
    const long h = unit / parts, m = unit % parts * part, n = tokens - m < part ? tokens - m : part;
    void *to = (void *)at(result, m * result_stride + h * D, wide);
    const void *from = at(q, m * stride + h * D, wide);
    const void *k = at(keys, h * capacity * D, wide), *v = at(values, h * capacity * D, wide);
    if (wide) attend_head(to, from, stride, result_stride, n, k, v, visible, bias, plain, 1);
    else attend_head(to, from, stride, result_stride, n, k, v, visible, bias, plain, 0);
  }
}
