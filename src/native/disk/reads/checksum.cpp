#include "disk/reads/checksum.h"

#include <array>
#include <cstring>
#ifdef DALI_X86
#include <immintrin.h>
#endif

#include "kernels/variants.h"

namespace dali {

namespace {

// The algorithm's own constants: its default secret, and its primes.
alignas(64) constexpr uint8_t SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};
constexpr uint64_t PRIME_32_1 = 0x9E3779B1, PRIME_32_2 = 0x85EBCA77, PRIME_32_3 = 0xC2B2AE3D;
constexpr uint64_t PRIME_64_1 = 0x9E3779B185EBCA87, PRIME_64_2 = 0xC2B2AE3D27D4EB4F, PRIME_64_3 = 0x165667B19E3779F9,
                   PRIME_64_4 = 0x85EBCA77C2B2AE63, PRIME_64_5 = 0x27D4EB2F165667C5, PRIME_MX = 0x165667919E3779F9;
constexpr size_t STRIPE = 64, LANES = 8, STEP = 8;  // bytes, words of a stripe, bytes of the secret from one stripe to the next
constexpr size_t STRIPES = (sizeof SECRET - STRIPE) / STEP;  // of a block

using Sums = std::array<uint64_t, LANES>;

uint64_t word(const uint8_t* at) {
    uint64_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

void add_stripe(Sums& sums, const uint8_t* data, const uint8_t* secret) {
    uint64_t values[LANES], keyed[LANES];
    std::memcpy(values, data, STRIPE);
    std::memcpy(keyed, secret, STRIPE);
    for (size_t i = 0; i < LANES; i++) keyed[i] ^= values[i];
    for (size_t i = 0; i < LANES; i++) sums[i] += values[i ^ 1] + (keyed[i] & 0xFFFFFFFF) * (keyed[i] >> 32);
}

void scramble(Sums& sums) {
    for (size_t i = 0; i < LANES; i++)
        sums[i] = (sums[i] ^ sums[i] >> 47 ^ word(SECRET + sizeof SECRET - STRIPE + 8 * i)) * PRIME_32_1;
}

// The first stripes.
void add_portable(Sums& sums, const uint8_t* data, size_t stripes) {
    for (size_t i = 0; i < stripes; i++) {
        if (i && i % STRIPES == 0) scramble(sums);
        add_stripe(sums, data + i * STRIPE, SECRET + i % STRIPES * STEP);
    }
}

#ifdef DALI_X86
// Compilers make less than half of its speed of what is above.
#define AVX2 __attribute__((target("avx2")))

AVX2 inline __m256i half_at(const void* from, int half) { return _mm256_loadu_si256(static_cast<const __m256i*>(from) + half); }

AVX2 void add_avx2(Sums& sums, const uint8_t* data, size_t stripes) {
    __m256i held[2] = {half_at(sums.data(), 0), half_at(sums.data(), 1)};
    const __m256i prime = _mm256_set1_epi64x(int64_t(PRIME_32_1));
    for (size_t i = 0; i < stripes; i++) {
        for (int half = 0; i && i % STRIPES == 0 && half < 2; half++) {
            __m256i mixed = _mm256_xor_si256(held[half], _mm256_srli_epi64(held[half], 47));
            mixed = _mm256_xor_si256(mixed, half_at(SECRET + sizeof SECRET - STRIPE, half));
            const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime);
            held[half] = _mm256_add_epi64(_mm256_mul_epu32(mixed, prime), _mm256_slli_epi64(high, 32));
        }
        for (int half = 0; half < 2; half++) {
            const __m256i values = half_at(data + i * STRIPE, half);
            const __m256i keyed = _mm256_xor_si256(values, half_at(SECRET + i % STRIPES * STEP, half));
            const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
            held[half] = _mm256_add_epi64(held[half], _mm256_add_epi64(product, _mm256_shuffle_epi32(values, 0x4E)));
        }
    }
    for (int half = 0; half < 2; half++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums.data()) + half, held[half]);
}
#endif

void add_stripes(Sums& sums, const uint8_t* data, size_t stripes) {
#ifdef DALI_X86
    if (&current_variant() != portable_variant()) return add_avx2(sums, data, stripes);  // all others have it
#endif
    add_portable(sums, data, stripes);
}

uint64_t folded(uint64_t a, uint64_t b) {
    const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return uint64_t(product) ^ uint64_t(product >> 64);
}

}  // namespace

uint64_t xxh3(const uint8_t* data, size_t bytes) {
    Sums sums = {PRIME_32_3, PRIME_64_1, PRIME_64_2, PRIME_64_3, PRIME_64_4, PRIME_32_2, PRIME_64_5, PRIME_32_1};
    const size_t stripes = (bytes - 1) / STRIPE;  // and a last one, which ends with the data
    add_stripes(sums, data, stripes);
    if (stripes && stripes % STRIPES == 0) scramble(sums);
    add_stripe(sums, data + bytes - STRIPE, SECRET + sizeof SECRET - STRIPE - 7);
    uint64_t hash = bytes * PRIME_64_1;
    for (size_t i = 0; i < LANES; i += 2) hash += folded(sums[i] ^ word(SECRET + 11 + 8 * i), sums[i + 1] ^ word(SECRET + 19 + 8 * i));
    hash = (hash ^ hash >> 37) * PRIME_MX;
    return hash ^ hash >> 32;
}

}  // namespace dali
