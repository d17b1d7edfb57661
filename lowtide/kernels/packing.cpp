// Codes of a few bits, packed and unpacked in one pass over memory, on little-endian machines; bit for
// bit what affine.py and threshold_codes.py define in plain PyTorch. Compiled by native.py at first use,
// without contraction of products and sums, so every operation rounds as PyTorch's does.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

// As many as a register holds: of wider vectors some compilers compare one number at a time.
#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
constexpr int64_t CHUNK = 64;
constexpr int64_t SMALL = 1 << 15;  // numbers below which a second thread costs more than it gives

struct bf16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }

inline float wide(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline void narrow(float x, float* out) { *out = x; }

inline void narrow(float x, bf16* out) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  // To the nearest, ties to even; NaN stays NaN.
  out->bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// Where each field of a code lies: 6 bits are 4 and 2, each in bytes of its own.
struct Fields {
  int count = 0;
  int width[4], shift[4];
  int64_t start[4];

  Fields(int64_t bits, int64_t numbers) {
    int64_t bytes = 0;
    int shifted = 0;
    for (int w = 8; w >= 1; w /= 2) {
      if (!(bits & w)) continue;
      width[count] = w, shift[count] = shifted, start[count] = bytes;
      count++, shifted += w;
      bytes += (numbers * w + 7) / 8;
    }
  }

  // The first number is a multiple of 8, and `codes` has room for zeros up to the next one.
  template <class N>
  void pack(uint8_t* codes, int64_t first, N n, uint8_t* out) const {
    for (int64_t i = n; i % 8; i++) codes[i] = 0;
    for (int f = 0; f < count; f++) {
      uint8_t* to = out + start[f] + first * width[f] / 8;
      if (width[f] == 8) std::memcpy(to, codes, n);
      if (width[f] == 4) squeeze<4>(codes, n, shift[f], to);
      if (width[f] == 2) squeeze<2>(codes, n, shift[f], to);
      if (width[f] == 1) squeeze<1>(codes, n, shift[f], to);
    }
  }

  // `codes` has room for the next multiple of 8.
  template <class N>
  void unpack(const uint8_t* in, int64_t first, N n, uint8_t* codes) const {
    for (int f = 0; f < count; f++) {
      const uint8_t* from = in + start[f] + first * width[f] / 8;
      if (width[f] == 8) std::memcpy(codes, from, n);
      if (width[f] == 4) spread<4>(from, n, shift[f], codes);
      if (width[f] == 2) spread<2>(from, n, shift[f], codes);
      if (width[f] == 1) spread<1>(from, n, shift[f], codes);
    }
  }

 private:
  // Eight fields of W bits in a row to a byte each, by halves, and back; the lowest bits come first.
  template <int W>
  static uint64_t spread(uint64_t x) {
    x = (x | x << (32 - 4 * W)) & (0x0000000100000001 * ((1ull << 4 * W) - 1));
    x = (x | x << (16 - 2 * W)) & (0x0001000100010001 * ((1ull << 2 * W) - 1));
    return (x | x << (8 - W)) & (0x0101010101010101 * ((1ull << W) - 1));
  }

  template <int W>
  static uint64_t squeeze(uint64_t x) {
    x &= 0x0101010101010101 * ((1ull << W) - 1);
    x = (x | x >> (8 - W)) & (0x0001000100010001 * ((1ull << 2 * W) - 1));
    x = (x | x >> (16 - 2 * W)) & (0x0000000100000001 * ((1ull << 4 * W) - 1));
    return x | x >> (32 - 4 * W);
  }

  template <int W, class N>
  static void spread(const uint8_t* from, N n, int shift, uint8_t* codes) {
    const auto eight = [=](int64_t i, auto bytes) {
      uint64_t few = 0, before = 0;
      std::memcpy(&few, from + i / 8 * W, bytes);
      if (shift) std::memcpy(&before, codes + i, 8);
      before |= spread<W>(few) << shift;
      std::memcpy(codes + i, &before, 8);
    };
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) eight(i, std::integral_constant<int64_t, W>());
    if (i < n) eight(i, ((n - i) * W + 7) / 8);
  }

  template <int W, class N>
  static void squeeze(const uint8_t* codes, N n, int shift, uint8_t* to) {
    const auto eight = [=](int64_t i, auto bytes) {
      uint64_t many;
      std::memcpy(&many, codes + i, 8);
      many = squeeze<W>(many >> shift);
      std::memcpy(to + i / 8 * W, &many, bytes);
    };
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) eight(i, std::integral_constant<int64_t, W>());
    if (i < n) eight(i, ((n - i) * W + 7) / 8);
  }
};

// Read n numbers from `first` on, shifted and scaled row by row if asked.
template <class T, class N>
void read(const T* x, const float* shift, const float* scale, int64_t row, int64_t first, N n,
          float* out) {
  if (!scale) {
    for (int64_t i = 0; i < n; i++) out[i] = wide(x[first + i]);
    return;
  }
  if (first / row == (first + n - 1) / row) {
    const float minus = shift[first / row], times = scale[first / row];
    for (int64_t i = 0; i < n; i++) out[i] = (wide(x[first + i]) - minus) * times;
    return;
  }
  for (int64_t done = 0; done < n;) {
    const int64_t at = first + done, r = at / row;
    const int64_t m = std::min<int64_t>(n - done, (r + 1) * row - at);
    const float minus = shift[r], times = scale[r];
    for (int64_t i = 0; i < m; i++) out[done + i] = (wide(x[at + i]) - minus) * times;
    done += m;
  }
}

template <class N>
void extremes(const float* x, N n, float* low, float* high) {
  float lo = x[0], hi = x[0];
  int bad = 0;
  int64_t i = 0;
  if (n >= LANES) {
    Floats v, least, most;
    Ints broken = {};
    std::memcpy(&least, x, sizeof v);
    most = least;
    for (; i + LANES <= n; i += LANES) {
      std::memcpy(&v, x + i, sizeof v);
      least = v < least ? v : least;
      most = v > most ? v : most;
      broken |= v != v;
    }
    for (int64_t l = 0; l < LANES; l++) {
      lo = std::min(lo, least[l]);
      hi = std::max(hi, most[l]);
      bad |= broken[l];
    }
  }
  for (; i < n; i++) {
    lo = std::min(lo, x[i]);
    hi = std::max(hi, x[i]);
    bad |= x[i] != x[i];
  }
  *low = bad ? NAN : lo;
  *high = bad ? NAN : hi;
}

// Minimum and step of a group as they are kept, and as read back.
template <class S>
void statistics(float low, float high, float top, S* kept_low, S* kept_step, float* minus,
                float* step) {
  if (sizeof(S) < 4) {
    const float slack = 0.0078125f;
    narrow(low - slack * std::fabs(low), kept_low);
    *minus = wide(*kept_low);
    narrow((high / top - *minus / top) * (1 + slack), kept_step);
  } else {
    narrow(low, kept_low);
    narrow(high / top - low / top, kept_step);
    *minus = low;
  }
  *step = wide(*kept_step);
}

template <class N>
void quantise(const float* x, N n, float minus, float scale, float top, uint8_t* codes) {
  // Added and taken away it rounds to the nearest, ties to even, what is smaller than 2^22; std::rint
  // is a call of a function on an x86 processor of unknown age.
  constexpr float whole = 3 << 22;
  for (int64_t i = 0; i < n; i++) {
    float q = ((x[i] - minus) * scale + whole) - whole;
    q = q > 0 ? q : 0;  // NaN becomes 0
    codes[i] = uint8_t(int32_t(q < top ? q : top));
  }
}

using Usual = std::integral_constant<int64_t, CHUNK>;

// Of a block of the usual size, the one group is all of it.
inline Usual least(Usual group, int64_t) { return group; }
inline int64_t least(int64_t group, int64_t rest) { return std::min(group, rest); }

// Most blocks are of the usual size, for which the compiler unrolls every loop.
template <class F>
void sized(int64_t n, int64_t group, F f) {
  if (n == CHUNK && group == CHUNK)
    f(Usual(), Usual());
  else
    f(n, group);
}

int64_t unit(int64_t group) {
  int64_t n = group;
  while (n % 8) n *= 2;
  return n;
}

// Blocks that start at a whole byte and at a whole group: at least 64 numbers of them.
int64_t block_of(int64_t group) {
  const int64_t u = unit(group);
  return (CHUNK + u - 1) / u * u;
}

template <class T, class S>
void affine_pack(const T* x, const float* shift, const float* scale, int64_t row, int64_t start,
                 int64_t n, int64_t total, int64_t group, int64_t bits, S* lows, S* steps,
                 uint8_t* out, int64_t threads) {
  const Fields fields(bits, total);
  const int64_t block = block_of(group), blocks = (n + block - 1) / block;
  const float top = (1 << bits) - 1;
#pragma omp parallel num_threads(n < SMALL ? 1 : threads)
  {
    std::vector<float> values(block);
    std::vector<uint8_t> codes(block + 8);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t first = b * block;
      const auto pack = [&](auto m, auto most) {
        read(x, shift, scale, row, first, m, values.data());
        for (int64_t at = 0; at < m; at += most) {
          const int64_t g = (start + first + at) / group;
          const auto size = least(most, m - at);
          float low, high, minus, step;
          extremes(&values[at], size, &low, &high);
          statistics(low, high, top, lows + g, steps + g, &minus, &step);
          quantise(&values[at], size, minus, step < FLT_MIN ? 0 : 1 / step, top, &codes[at]);
        }
        fields.pack(codes.data(), start + first, m, out);
      };
      sized(std::min(block, n - first), group, pack);
    }
  }
}

template <class T, class S>
void affine_unpack(const S* lows, const S* steps, const uint8_t* in, int64_t n, int64_t group,
                   int64_t bits, T* out, int64_t threads) {
  const Fields fields(bits, n);
  const int64_t block = block_of(group), blocks = (n + block - 1) / block;
#pragma omp parallel num_threads(n < SMALL ? 1 : threads)
  {
    std::vector<uint8_t> codes(block + 8);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t first = b * block;
      const auto unpack = [&](auto m, auto most) {
        fields.unpack(in, first, m, codes.data());
        for (int64_t at = 0; at < m; at += most) {
          const int64_t g = (first + at) / group;
          const auto size = least(most, m - at);
          const float step = wide(steps[g]), low = wide(lows[g]);
          const uint8_t* c = &codes[at];
          T* to = out + first + at;
          for (int64_t i = 0; i < size; i++) narrow(float(c[i]) * step + low, to + i);
        }
      };
      sized(std::min(block, n - first), group, unpack);
    }
  }
}

// How many edges lie below each number, as codes: by counting those crossed, the ups and the downs.
struct Counted {
  std::vector<float> up, down;
  int32_t least;

  Counted(const std::vector<float>& edges, const int64_t* codes) : least(codes[0]) {
    for (size_t j = 0; j < edges.size(); j++) {
      const int64_t rise = codes[j + 1] - codes[j];
      (rise > 0 ? up : down).insert((rise > 0 ? up : down).end(), std::abs(rise), edges[j]);
    }
  }

  void operator()(const float* x, uint8_t* out) const {
    int32_t sums[CHUNK];
    Floats v[CHUNK / LANES];
    Ints code[CHUNK / LANES];
    std::memcpy(v, x, sizeof v);
    for (Ints& c : code) c = Ints{} + least;
    // A comparison that holds is -1.
    for (const float edge : up)
      for (int64_t k = 0; k < CHUNK / LANES; k++) code[k] -= v[k] > edge;
    for (const float edge : down)
      for (int64_t k = 0; k < CHUNK / LANES; k++) code[k] += v[k] > edge;
    std::memcpy(sums, code, sizeof code);
    for (int64_t i = 0; i < CHUNK; i++) out[i] = uint8_t(sums[i]);
  }
};

#ifdef __AVX512F__
// The same for up to 31 edges, by halves: two registers are the table.
struct Halved {
  float edges[32];
  int32_t codes[32];

  Halved(const std::vector<float>& some, const int64_t* code) {
    for (size_t j = 0; j < 32; j++) {
      edges[j] = j < some.size() ? some[j] : INFINITY;
      codes[j] = int32_t(code[std::min(j, some.size())]);
    }
  }

  void operator()(const float* x, uint8_t* out) const {
    const __m512 low = _mm512_loadu_ps(edges), high = _mm512_loadu_ps(edges + 16);
    const __m512i first = _mm512_loadu_si512(codes), last = _mm512_loadu_si512(codes + 16);
    for (int64_t i = 0; i < CHUNK; i += 16) {
      const __m512 v = _mm512_loadu_ps(x + i);
      __m512i below = _mm512_setzero_si512();
      for (int half = 16; half; half /= 2) {
        const __m512i at = _mm512_add_epi32(below, _mm512_set1_epi32(half - 1));
        const __m512 edge = _mm512_permutex2var_ps(low, at, high);
        below = _mm512_mask_add_epi32(below, _mm512_cmp_ps_mask(v, edge, _CMP_GT_OQ), below,
                                      _mm512_set1_epi32(half));
      }
      const __m512i code = _mm512_permutex2var_epi32(first, below, last);
      _mm_storeu_si128((__m128i*)(out + i), _mm512_cvtepi32_epi8(code));
    }
  }
};
#endif

template <class T, class F>
void threshold_pack(const T* x, int64_t start, int64_t n, const Fields& fields, uint8_t* out,
                    int64_t threads, const F& code_of) {
  const int64_t blocks = (n + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) num_threads(n < SMALL ? 1 : threads)
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t first = b * CHUNK;
    const auto pack = [&](auto m, auto) {
      float values[CHUNK] = {};
      uint8_t bytes[CHUNK];
      read(x, nullptr, nullptr, 0, first, m, values);
      code_of(values, bytes);
      fields.pack(bytes, start + first, m, out);
    };
    sized(std::min(CHUNK, n - first), CHUNK, pack);
  }
}

template <class T>
void threshold_pack(const T* x, int64_t start, int64_t n, int64_t total, const double* edges,
                    const int64_t* codes, int64_t count, int64_t bits, uint8_t* out,
                    int64_t threads) {
  const Fields fields(bits, total);
  std::vector<float> near(edges, edges + count);
  for (int64_t j = 0; j < count; j++)
    // The largest float not above the edge: x > edge says the same of both.
    if (near[j] > edges[j]) near[j] = std::nextafter(near[j], -INFINITY);
#ifdef __AVX512F__
  if (count > 3 && count < 32) {
    threshold_pack(x, start, n, fields, out, threads, Halved(near, codes));
    return;
  }
#endif
  threshold_pack(x, start, n, fields, out, threads, Counted(near, codes));
}

// The numbers of each byte at once, from a table of 256 rows.
template <int PER>
void look_up(const float* of_byte, const uint8_t* from, int64_t bytes, float* out) {
  for (int64_t i = 0; i < bytes; i++)
    std::memcpy(out + i * PER, of_byte + from[i] * PER, PER * sizeof(float));
}

// levels[code], times dy if there is one.
template <class T>
void threshold_unpack(const uint8_t* in, int64_t n, const double* levels, int64_t bits,
                      const T* dy, T* out, int64_t threads) {
  const Fields fields(bits, n);
  const int64_t blocks = (n + CHUNK - 1) / CHUNK;
  const int per = 8 / bits, mask = (1 << bits) - 1;
  const bool whole = fields.count == 1;
  std::vector<float> of_byte(whole ? 256 * per : 0), of_code(1 << bits);
  for (int c = 0; c <= mask; c++) {
    T rounded;
    narrow(float(levels[c]), &rounded);
    of_code[c] = wide(rounded);
  }
  if (whole)
    for (int i = 0; i < 256 * per; i++) of_byte[i] = of_code[(i / per) >> i % per * bits & mask];
#pragma omp parallel for schedule(static) num_threads(n < SMALL ? 1 : threads)
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t first = b * CHUNK, m = std::min(CHUNK, n - first);
    float v[CHUNK];
    if (whole) {
      const uint8_t* from = in + first * bits / 8;
      const int64_t bytes = (m + per - 1) / per;
      if (per == 1) look_up<1>(of_byte.data(), from, bytes, v);
      if (per == 2) look_up<2>(of_byte.data(), from, bytes, v);
      if (per == 4) look_up<4>(of_byte.data(), from, bytes, v);
      if (per == 8) look_up<8>(of_byte.data(), from, bytes, v);
    } else {
      uint8_t codes[CHUNK];
      fields.unpack(in, first, m, codes);
      for (int64_t i = 0; i < m; i++) v[i] = of_code[codes[i]];
    }
    if (dy)
      for (int64_t i = 0; i < m; i++) narrow(wide(dy[first + i]) * v[i], out + first + i);
    else
      for (int64_t i = 0; i < m; i++) narrow(v[i], out + first + i);
  }
}

}  // namespace

extern "C" {

const char* instructions() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__AVX__)
  return "AVX";
#elif defined(__ARM_NEON)
  return "NEON";
#else
  return "portable";
#endif
}

#define FOR_TYPES(T, t)                                                                            \
  void threshold_pack_##t(const T* x, int64_t start, int64_t n, int64_t total,                     \
                          const double* edges, const int64_t* codes, int64_t count, int64_t bits,  \
                          uint8_t* out, int64_t threads) {                                         \
    threshold_pack(x, start, n, total, edges, codes, count, bits, out, threads);                   \
  }                                                                                                \
  void threshold_unpack_##t(const uint8_t* in, int64_t n, const double* levels, int64_t bits,      \
                            const T* dy, T* out, int64_t threads) {                                \
    threshold_unpack(in, n, levels, bits, dy, out, threads);                                       \
  }

#define FOR_PAIRS(T, t, S, s)                                                                      \
  void affine_pack_##t##_##s(const T* x, const float* shift, const float* scale, int64_t row,      \
                             int64_t start, int64_t n, int64_t total, int64_t group, int64_t bits, \
                             S* lows, S* steps, uint8_t* out, int64_t threads) {                   \
    affine_pack(x, shift, scale, row, start, n, total, group, bits, lows, steps, out, threads);    \
  }                                                                                                \
  void affine_unpack_##t##_##s(const S* lows, const S* steps, const uint8_t* in, int64_t n,        \
                               int64_t group, int64_t bits, T* out, int64_t threads) {             \
    affine_unpack(lows, steps, in, n, group, bits, out, threads);                                  \
  }

FOR_TYPES(float, float32)
FOR_TYPES(bf16, bfloat16)
FOR_PAIRS(float, float32, float, float32)
FOR_PAIRS(float, float32, bf16, bfloat16)
FOR_PAIRS(bf16, bfloat16, float, float32)
FOR_PAIRS(bf16, bfloat16, bf16, bfloat16)
}
