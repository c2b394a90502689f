/* Weights in blocks of four-bit elements (E2M1), two a byte: decoded, or multiplied without being decoded. */
#include <stdint.h>
#include <string.h>

#define BLOCK 16
#define LANES 16 /* bytes at a time, and floats of a vector */
#define MOST 8   /* rows of x at a time */

#define AHEAD 1024 /* bytes of codes that are asked for before they are needed */
#define PART 64  /* blocks whose scales are made at a time */

/* The weights of so many blocks of `block` elements: what a byte's two elements are, pairs (256, 2), times what the
 * byte of a block's scale means, meanings (256). */
void decode(const uint8_t *codes, const uint8_t *scales, const float *pairs, const float *meanings, float *restrict weights,
            int64_t blocks, int64_t block) {
    for (int64_t b = 0; b < blocks; b++) {
        float scale = meanings[scales[b]];
        for (int64_t i = 0; i < block / 2; i++) {
            const float *pair = pairs + 2 * *codes++;
            *weights++ = pair[0] * scale;
            *weights++ = pair[1] * scale;
        }
    }
}

/* What E4M3 bytes without sign mean: their bits are those of floats whose exponents are 120 too small. */
static inline void scales_of(const uint8_t *bytes, int64_t num, float factor, float *values) {
    for (int64_t i = 0; i < num; i++) {
        uint32_t bits = (uint32_t)bytes[i] << 20;
        float value;
        memcpy(&value, &bits, sizeof value);
        values[i] = value * factor;
    }
}

#if defined(__AVX512F__)
#include <immintrin.h>

/* One row of W with `rows` rows of x, stride floats apart; rows is a constant where this is inlined. */
static inline __attribute__((always_inline)) void
row(const uint8_t *codes, const uint8_t *scales, const float *x, int64_t stride, int64_t inputs, int rows, float *sums) {
    const __m512 table = _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
    __m512 even[MOST], odd[MOST]; /* two sums, as one would wait for itself */
    for (int r = 0; r < rows; r++)
        even[r] = odd[r] = _mm512_setzero_ps();
    for (int64_t start = 0; start < inputs / BLOCK; start += PART) {
        float scale[PART];
        int64_t num = inputs / BLOCK - start < PART ? inputs / BLOCK - start : PART;
        scales_of(scales + start, num, 0x1p120f, scale);
#pragma GCC unroll 4
        for (int64_t b = 0; b < num; b += 2) {
            int64_t i = (start + b) * (BLOCK / 2);
            _mm_prefetch((const char *)(codes + i + AHEAD), _MM_HINT_T0);
            __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i)));
            __m512 both = _mm512_mask_broadcastss_ps(_mm512_set1_ps(scale[b]), 0xFF00, _mm_load_ss(scale + b + 1));
            __m512 low = _mm512_permutexvar_ps(bytes, table); /* reads four bits of an index */
            __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table);
            if (rows == 1) { /* one product less */
                __m512 sum = _mm512_mul_ps(low, _mm512_loadu_ps(x + 2 * i));
                sum = _mm512_fmadd_ps(high, _mm512_loadu_ps(x + 2 * i + LANES), sum);
                __m512 *total = b / 2 % 2 ? even : odd;
                *total = _mm512_fmadd_ps(sum, both, *total);
                continue;
            }
            low = _mm512_mul_ps(low, both);
            high = _mm512_mul_ps(high, both);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const float *part = x + r * stride + 2 * i;
                even[r] = _mm512_fmadd_ps(low, _mm512_loadu_ps(part), even[r]);
                odd[r] = _mm512_fmadd_ps(high, _mm512_loadu_ps(part + LANES), odd[r]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        sums[r] = _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r]));
}
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

/* The table has twice the elements, as bytes; the factor 1/2 is the scales'. */
static inline __attribute__((always_inline)) void
row(const uint8_t *codes, const uint8_t *scales, const float *x, int64_t stride, int64_t inputs, int rows, float *sums) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i mask = _mm_set1_epi8(15);
    __m256 even[MOST], odd[MOST];
    for (int r = 0; r < rows; r++)
        even[r] = odd[r] = _mm256_setzero_ps();
    for (int64_t start = 0; start < inputs / BLOCK; start += PART) {
        float scale[PART];
        int64_t num = inputs / BLOCK - start < PART ? inputs / BLOCK - start : PART;
        scales_of(scales + start, num, 0x1p119f, scale);
        for (int64_t b = 0; b < num; b += 2) {
            int64_t i = (start + b) * (BLOCK / 2);
            __m128i bytes = _mm_loadu_si128((const __m128i *)(codes + i));
            __m128i low = _mm_shuffle_epi8(table, _mm_and_si128(bytes, mask));
            __m128i high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
            for (int half = 0; half < 2; half++) { /* one block each */
                __m256 one = _mm256_broadcast_ss(scale + b + half);
                __m256 l = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)), one);
                __m256 h = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)), one);
                for (int r = 0; r < rows; r++) {
                    const float *part = x + r * stride + 2 * i + 8 * half;
                    even[r] = _mm256_fmadd_ps(l, _mm256_loadu_ps(part), even[r]);
                    odd[r] = _mm256_fmadd_ps(h, _mm256_loadu_ps(part + LANES), odd[r]);
                }
                low = _mm_srli_si128(low, 8);
                high = _mm_srli_si128(high, 8);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        float parts[8];
        _mm256_storeu_ps(parts, _mm256_add_ps(even[r], odd[r]));
        sums[r] = ((parts[0] + parts[4]) + (parts[1] + parts[5])) + ((parts[2] + parts[6]) + (parts[3] + parts[7]));
    }
}
#else
static inline void
row(const uint8_t *codes, const uint8_t *scales, const float *x, int64_t stride, int64_t inputs, int rows, float *sums) {
    static const float table[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    for (int r = 0; r < rows; r++) {
        float total[LANES] = {0};
        for (int64_t i = 0; i < inputs / 2; i += LANES) {
            float scale[2];
            scales_of(scales + i / 8, 2, 0x1p120f, scale);
            for (int lane = 0; lane < LANES; lane++) {
                const float *part = x + r * stride + 2 * i + lane;
                uint8_t byte = codes[i + lane];
                total[lane] += scale[lane / 8] * (table[byte & 15] * part[0] + table[byte >> 4] * part[LANES]);
            }
        }
        sums[r] = 0;
        for (int lane = 0; lane < LANES; lane++)
            sums[r] += total[lane];
    }
}
#endif

/* y = x W^T, (rows, outputs), with W in NVFP4: a scale (E4M3) for every 16 inputs, of which there is a multiple of 32.
 *
 * Two blocks are looked up in registers and multiplied; x comes with the even and the odd of every 32 inputs apart, as
 * the low and the high halves of bytes are. inverse: one over what scales were divided by. */
void product(const uint8_t *codes, const uint8_t *scales, float inverse, const float *x, float *y, int64_t rows,
                   int64_t outputs, int64_t inputs) {
    for (int64_t first = 0; first < rows; first += MOST) {
        int64_t some = rows - first < MOST ? rows - first : MOST;
        const float *part = x + first * inputs;
        for (int64_t o = 0; o < outputs; o++) {
            const uint8_t *c = codes + o * (inputs / 2), *s = scales + o * (inputs / BLOCK);
            float sums[MOST];
            switch (some) {
            case 1: row(c, s, part, inputs, inputs, 1, sums); break;
            case 2: row(c, s, part, inputs, inputs, 2, sums); break;
            case 4: row(c, s, part, inputs, inputs, 4, sums); break;
            case 8: row(c, s, part, inputs, inputs, 8, sums); break;
            default:
                for (int r = 0; r < some; r++)
                    row(c, s, part + r * inputs, inputs, inputs, 1, sums + r);
            }
            for (int64_t r = 0; r < some; r++)
                y[(first + r) * outputs + o] = inverse * sums[r];
        }
    }
}
