/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention of a streaming step on x86 CPUs that multiply bfloat16: the part that pays most. generic.c
 * has the same in float32 arithmetic, and all else that is done with the cache.
 *
 * Two ways to multiply, chosen when the program runs: AMX tiles, or AVX512_BF16 on whole registers.
 * Both read the same packed layout, which lets every product run on contiguous 64-byte rows:
 *
 *     keys    [token / 16][d / 2][16 tokens][2]     "B" operand of queries * keys^T
 *     values  [token / 2][d][2]                     "B" operand of weights * values
 *
 * A head's keys and values come from memory once, CHUNK tokens at a time, for all queries, and are worked
 * on KEYS at a time for ROWS queries (online softmax, arXiv:1805.02867), so that scores, weights and
 * sums stay in the core's first cache.
 *
 * d = 64 throughout. Plain C interface for ctypes; OpenMP is that of PyTorch (see __init__.py).
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { D = 64, ROWS = 32, KEYS = 64, CHUNK = 1024, MAX_QUERIES = 512 };
typedef uint16_t bf16;

#define SCALE 0.18033688f /* log2(e) / sqrt(D): softmax by powers of two */

static inline bf16 narrow(float x) { /* to nearest, ties to even; finite numbers */
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* -- products: scores[ROWS][KEYS] = q * keys, out[ROWS][D] += weights * values -------- */

static void tiles_on(void) {
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
  for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
  _tile_loadconfig(&config);
}

/* Every tile of keys or values is loaded once for both halves of the rows: they come from L2, and
 * loads are what limits these two. */
static void scores_amx(float *scores, const bf16 *q, const bf16 *keys, int rows, int blocks) {
  _tile_loadd(4, q, 2 * D);
  _tile_loadd(5, q + 32, 2 * D);
  _tile_loadd(6, q + 16 * D, 2 * D);
  _tile_loadd(7, q + 16 * D + 32, 2 * D);
  for (int n = 0; n < blocks; n++) {
    _tile_zero(0);
    _tile_loadd(2, keys + n * 16 * D, 64);
    _tile_dpbf16ps(0, 4, 2);
    _tile_loadd(3, keys + n * 16 * D + 16 * 32, 64);
    _tile_dpbf16ps(0, 5, 3);
    _tile_stored(0, scores + n * 16, 4 * KEYS);
    if (rows <= 16) continue;
    _tile_zero(1);
    _tile_dpbf16ps(1, 6, 2);
    _tile_dpbf16ps(1, 7, 3);
    _tile_stored(1, scores + 16 * KEYS + n * 16, 4 * KEYS);
  }
}

static void outputs_amx(float *out, const bf16 *weights, const bf16 *values, int rows, int blocks) {
  for (int c = 0; c < D; c += 32, out += 32, values += 64) { /* half of the channels at a time */
    _tile_loadd(0, out, 4 * D);
    _tile_loadd(1, out + 16, 4 * D);
    _tile_loadd(2, out + 16 * D, 4 * D);
    _tile_loadd(3, out + 16 * D + 16, 4 * D);
    for (int t = 0; t < 16 * blocks; t += 32) {
      _tile_loadd(4, weights + t, 2 * KEYS);
      _tile_loadd(6, values + t * D, 4 * D);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, values + t * D + 32, 4 * D);
      _tile_dpbf16ps(1, 4, 7);
      if (rows <= 16) continue;
      _tile_loadd(5, weights + 16 * KEYS + t, 2 * KEYS);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 4 * D);
    _tile_stored(1, out + 16, 4 * D);
    if (rows <= 16) continue;
    _tile_stored(2, out + 16 * D, 4 * D);
    _tile_stored(3, out + 16 * D + 16, 4 * D);
  }
}

static inline __m512bh pair(const bf16 *p) { /* two neighbours, in all lanes */
  return (__m512bh)_mm512_set1_epi32(*(const int32_t *)p);
}

static void scores_avx(float *scores, const bf16 *q, const bf16 *keys, int rows, int blocks) {
  for (int n = 0; n < blocks; n += 2)
    for (int row = 0; row < rows; row += 8) {
      __m512 sum[8][2];
      for (int r = 0; r < 8; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
      const bf16 *k = keys + n * 16 * D;
      for (int i = 0; i < D; i += 2) {
        __m512bh left = (__m512bh)_mm512_load_si512(k + i * 16);
        __m512bh right = (__m512bh)_mm512_load_si512(k + i * 16 + 16 * D);
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
          __m512bh both = pair(q + (row + r) * D + i);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], both, left);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], both, right);
        }
      }
      for (int r = 0; r < 8; r++) {
        _mm512_store_ps(scores + (row + r) * KEYS + n * 16, sum[r][0]);
        _mm512_store_ps(scores + (row + r) * KEYS + n * 16 + 16, sum[r][1]);
      }
    }
}

static void outputs_avx(float *out, const bf16 *weights, const bf16 *values, int rows, int blocks) {
  for (int row = 0; row < rows; row += 4) {
    __m512 sum[4][4];
    for (int r = 0; r < 4; r++)
      for (int c = 0; c < 4; c++) sum[r][c] = _mm512_load_ps(out + (row + r) * D + 16 * c);
    for (int t = 0; t < 16 * blocks; t += 2) {
      __m512bh v[4];
      for (int c = 0; c < 4; c++) v[c] = (__m512bh)_mm512_load_si512(values + t * D + 32 * c);
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) {
        __m512bh both = pair(weights + (row + r) * KEYS + t);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], both, v[c]);
      }
    }
    for (int r = 0; r < 4; r++)
      for (int c = 0; c < 4; c++) _mm512_store_ps(out + (row + r) * D + 16 * c, sum[r][c]);
  }
}

/* -- softmax ---------------------------------------------------------------------------------------- */

/* Mantissas of 2^(i / 128) in bfloat16. */
static uint8_t mantissas[128];

static void fill_mantissas(void) {
  for (int i = 0; i < 128; i++) mantissas[i] = lround((exp2(i / 128.0) - 1) * 128);
}

/* 2^(x / 128 - 127) in bfloat16 for 32 numbers x, at most 127 * 128. Rounded to an integer, x is that
 * number's exponent and, after one look into a table, its mantissa: as exact as the format, and a
 * third of the work of a polynomial. */
static inline __m512i powers_of_two(__m512 low, __m512 high, __m512i table, __m512i table2) {
  __m512i x = _mm512_packs_epi32(_mm512_cvtps_epi32(low), _mm512_cvtps_epi32(high));
  x = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), x);
  x = _mm512_max_epi16(x, _mm512_setzero_si512());
  __m512i mantissa = _mm512_permutex2var_epi8(table, x, table2);
  return _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x7f), mantissa, x, 0xca); /* mask ? a : b */
}

/* The highest score of a row becomes what its weights are relative to; what was summed up is scaled. */
static __attribute__((noinline)) float raise_top(float *out, const float *s, float *top, float *total,
                                                 int blocks) {
  float highest = *top;
  for (int n = 0; n < 16 * blocks; n++) highest = s[n] > highest ? s[n] : highest;
  __m512 fade = _mm512_set1_ps(exp2f((*top - highest) * SCALE));
  for (float *o = out; o < out + D; o += 16) _mm512_store_ps(o, _mm512_mul_ps(fade, _mm512_load_ps(o)));
  _mm512_store_ps(total, _mm512_mul_ps(fade, _mm512_load_ps(total)));
  *top = highest;
  return (highest * SCALE - 127) * 128;
}

/* Rows of scores to weights, relative to `top`; `total`, 16 parts a row, is the sum of weights so far, and
 * `out` what has been summed up with them. `top` is the highest score of the first keys, and is raised
 * only when others are so much higher that weights grow large: the exponents of bfloat16 reach as far
 * as those of float32, and to look for the highest score every time took a third of the softmax.
 * (Scores of a row may be 9e7 apart: then the conversion to integers ends.) */
static void softmax(bf16 *weights, float *out, const float *scores, float *top, float *total, int rows,
                    int blocks) {
  const __m512i table = _mm512_loadu_si512(mantissas), table2 = _mm512_loadu_si512(mantissas + 64);
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  const __m512 scale = _mm512_set1_ps(128 * SCALE), large = _mm512_set1_ps(0x1p40f);
  for (int r = 0; r < rows; r++) {
    const float *s = scores + r * KEYS;
    float shift = (top[r] * SCALE - 127) * 128;
    for (int again = 0;; again = 1) {
      if (again || top[r] == -INFINITY)
        shift = raise_top(out + r * D, s, top + r, total + 16 * r, blocks);
      __m512 sum = _mm512_setzero_ps(), by = _mm512_set1_ps(shift);
      for (int n = 0; n < blocks; n += 2) {
        __m512 a = _mm512_fmsub_ps(_mm512_load_ps(s + 16 * n), scale, by);
        __m512 b = _mm512_fmsub_ps(_mm512_load_ps(s + 16 * n + 16), scale, by);
        __m512i w = powers_of_two(a, b, table, table2);
        sum = _mm512_dpbf16_ps(sum, (__m512bh)w, ones);
        _mm512_store_si512(weights + r * KEYS + 16 * n, w);
      }
      if (!again && _mm512_cmp_ps_mask(sum, large, _CMP_NLT_UQ)) continue;
      _mm512_store_ps(total + 16 * r, _mm512_add_ps(_mm512_load_ps(total + 16 * r), sum));
      break;
    }
  }
}

/* -- one head ---------------------------------------------------------------------------------------- */

/* Queries of one head against the first `visible` tokens of the cache; `bias` is added to the scores
 * of tokens from `plain` on. */
static void attend_head(bf16 *result, const bf16 *q, long stride, long result_stride, long queries,
                        const bf16 *keys, const bf16 *values, long visible, const float *bias,
                        long plain, int amx) {
  _Alignas(64) bf16 packed[MAX_QUERIES * D], weights[ROWS * KEYS];
  _Alignas(64) float out[MAX_QUERIES * D], scores[ROWS * KEYS], top[MAX_QUERIES], total[MAX_QUERIES * 16];
  long rows = (queries + ROWS - 1) / ROWS * ROWS;
  memset(packed + (rows - ROWS) * D, 0, sizeof(bf16) * ROWS * D);
  memset(out, 0, sizeof(float) * rows * D);
  memset(total, 0, sizeof(float) * rows * 16);
  for (long m = 0; m < queries; m++) memcpy(packed + m * D, q + m * stride, sizeof(bf16) * D);
  for (long m = 0; m < rows; m++) top[m] = -INFINITY;
  if (amx) tiles_on();
  for (long begin = 0; begin < visible; begin += CHUNK) {
    const long end = visible - begin < CHUNK ? visible : begin + CHUNK;
    const long ahead = visible - end < CHUNK ? visible - end : CHUNK; /* tokens to be prefetched */
    for (long m = 0; m < rows; m += ROWS) {
      const int here = queries - m <= 16 ? 16 : ROWS;
      for (long i = end + ahead * m / rows; i < end + ahead * (m + ROWS) / rows; i++)
        for (int half = 0; half < D; half += 32) {
          _mm_prefetch(keys + i * D + half, _MM_HINT_T1);
          _mm_prefetch(values + i * D + half, _MM_HINT_T1);
        }
      for (long t = begin; t < end; t += KEYS) {
        const bf16 *k = keys + t * D, *v = values + t * D;
        const long tokens = end - t < KEYS ? end - t : KEYS;
        const int blocks = (tokens + 31) / 32 * 2;
        (amx ? scores_amx : scores_avx)(scores, packed + m * D, k, here, blocks);
        if (plain < t + tokens || tokens < 16 * blocks)
          for (float *s = scores; s < scores + here * KEYS; s += KEYS) {
            for (long i = plain > t ? plain - t : 0; i < tokens; i++) s[i] += bias[t + i];
            for (long i = tokens; i < 16 * blocks; i++) s[i] = -INFINITY;
          }
        softmax(weights, out + m * D, scores, top + m, total + m * 16, here, blocks);
        (amx ? outputs_amx : outputs_avx)(out + m * D, weights, v, here, blocks);
      }
    }
  }
  if (amx) _tile_release();
  for (long m = 0; m < queries; m++) {
    float sum = _mm512_reduce_add_ps(_mm512_load_ps(total + m * 16));
    for (int i = 0; i < D; i++) result[m * result_stride + i] = narrow(out[m * D + i] / sum);
  }
}

/* -- what Python calls -------------------------------------------------------------------------------
 *
 * One stream, one layer. q, k, v: element (token, head, channel) at token * stride + head * D + channel.
 * keys, values: the packed cache, `capacity` tokens (a multiple of 32) for each head. */

/* Softmax attention of `tokens` queries to the first `visible` tokens of the cache. Scores of tokens
 * from `plain` on get `bias` (by token, before the division by sqrt(D)) added. */
void omnistream_attend(bf16 *result, long result_stride, const bf16 *q, long stride, const bf16 *keys,
                       const bf16 *values, long heads, long tokens, long capacity, long visible,
                       const float *bias, long plain, int amx, int threads) {
  /* Queries of a head are split until all threads have the same work, or pieces get small. */
  long parts = (tokens + MAX_QUERIES - 1) / MAX_QUERIES;
  while (heads * parts % threads && heads * parts < 4 * threads && tokens / (parts + 1) >= ROWS) parts++;
  long part = ((tokens + parts - 1) / parts + ROWS - 1) / ROWS * ROWS;
  parts = (tokens + part - 1) / part;
  if (!mantissas[127]) fill_mantissas();
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long unit = 0; unit < heads * parts; unit++) {
    long h = unit / parts, m = unit % parts * part;
    attend_head(result + m * result_stride + h * D, q + m * stride + h * D, stride, result_stride,
                tokens - m < part ? tokens - m : part, keys + h * capacity * D,
                values + h * capacity * D, visible, bias, plain, amx);
  }
}
