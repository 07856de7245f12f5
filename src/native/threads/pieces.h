// Work on many values that goes piece by piece.
#pragma once

#include <algorithm>
#include <cstdint>

#include "threads/pool.h"

namespace dali {

constexpr int PIECE = 1 << 11;  // values that stay in the nearest cache; whole vectors
constexpr int64_t FEW_PIECES = 8;   // waking threads for them costs more

// work(first, some) for all of `count`, `most` at a time; by all threads where these are many pieces.
template <class Work>
void in_pieces(int64_t count, int64_t most, const Work& work) {
    const int64_t pieces = (count + most - 1) / most;
    const auto piece = [&](int64_t at) { work(at * most, int(std::min(most, count - at * most))); };
    if (pieces <= FEW_PIECES) {
        for (int64_t at = 0; at < pieces; at++) piece(at);
        return;
    }
    Phase phase{int(pieces)};
    Pool::instance().run([&] { phase.run([&](int at, int) { piece(at); }); });
}

// Rows of so many values that make a piece.
inline int64_t rows_of_piece(int64_t values) { return std::max<int64_t>(1, PIECE / std::max<int64_t>(values, 1)); }

}  // namespace dali
