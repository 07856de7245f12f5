// The highest of each row's logits, so that the host need not read them all. Values are compared by rank_of, of which none is 0.
#pragma once

#include "arithmetic.cuh"
#include "calls.h"

namespace dali::gpu {

// A warp's piece of a row.
struct Piece {
    int64_t row;
    int piece, pieces, most;
    int64_t at;  // of its ranks
};

// False beyond the last, and for rows of which nothing is wanted.
DALI_DEVICE bool find_piece(const HighestCall& call, Piece& to) {
    const int64_t warp = warp_of_launch();
    to.pieces = (call.width + PIECE - 1) / PIECE;
    to.row = warp / to.pieces;
    if (to.row >= call.rows) return false;
    to.piece = int(warp % to.pieces);
    to.most = call.most[to.row];
    to.at = warp * MOST;
    return to.most > 0;
}

constexpr int OWN = PIECE / 32;  // logits of a lane: every 32nd

DALI_DEVICE int id_of(const Piece& piece, int i) { return piece.piece * PIECE + 32 * i + lane_of_warp(); }

template <int dtype>
DALI_DEVICE float logit_of(const HighestCall& call, const Piece& piece, int i) {
    const int id = id_of(piece, i);
    return id < call.width ? read(call.logits, dtype, piece.row * call.width + id) : 0.0f;
}

// The lowest lane of those that say yes; one does.
DALI_DEVICE int first_lane(bool yes) { return 31 - int(largest_of_lanes(yes ? uint32_t(31 - lane_of_warp()) : 0)); }

template <int dtype>
DALI_DEVICE void rank_piece(const HighestCall& call, const Piece& piece) {
    uint32_t ranks[OWN], last = 0;
#pragma unroll
    for (int i = 0; i < OWN; i++) ranks[i] = id_of(piece, i) < call.width ? rank_of(logit_of<dtype>(call, piece, i)) : 0;
    const int lane = lane_of_warp();
    int before = 0;  // how many were the last one before they were taken
    for (int k = 0; k < piece.most; k++) {
        uint32_t own = 0;
#pragma unroll
        for (int i = 0; i < OWN; i++) own = ranks[i] > own ? ranks[i] : own;
        const uint32_t highest = largest_of_lanes(own);
        if (lane == 0) call.ranks[piece.at + k] = highest;
        before = highest == last ? before + 1 : 1;
        last = highest;
        bool take = lane == first_lane(own == highest);
#pragma unroll
        for (int i = 0; i < OWN; i++)
            if (take && ranks[i] == highest) ranks[i] = 0, take = false;
    }
    int equal = 0;  // to the last, beside those taken
#pragma unroll
    for (int i = 0; i < OWN; i++) equal += last && ranks[i] == last;
    const int others = sum_of_lanes(equal);
    if (lane == 0) call.ties[piece.at / MOST] = before + others;
}

// The ranks of a piece's highest, falling, and how many of its logits are the last of these.
DALI_KERNEL highest_of_pieces(DALI_CALL(HighestCall) call) {
    Piece piece;
    if (!find_piece(call, piece)) return;
    by_dtype(call.dtype, [&](auto dtype) { rank_piece<dtype.value>(call, piece); });
}

// The rank of the row's `most`-th highest: pieces' highest, merged. `heads` [pieces]: how many of each were taken.
DALI_DEVICE uint32_t merge_pieces(const uint32_t* ranks, int pieces, int most, int* heads) {
    const int lane = lane_of_warp();
    for (int p = lane; p < pieces; p += 32) heads[p] = 0;
    uint32_t least = 0;
    for (int k = 0; k < most; k++) {
        uint32_t own = 0;
        int from = lane;
        for (int p = lane; p < pieces; p += 32) {
            const uint32_t head = heads[p] < most ? ranks[int64_t(p) * MOST + heads[p]] : 0;
            if (head > own) own = head, from = p;
        }
        least = largest_of_lanes(own);
        if (lane == first_lane(own == least) && from < pieces) heads[from]++;
    }
    return least;
}

// What each row takes of each piece, and where that begins.
DALI_KERNEL highest_of_rows(DALI_CALL(HighestCall) call) {
    const int64_t row = warp_of_launch();
    if (row >= call.rows) return;
    const int pieces = (call.width + PIECE - 1) / PIECE, most = call.most[row], lane = lane_of_warp();
    const uint32_t* ranks = call.ranks + row * pieces * MOST;
    int* begin = call.begin + row * pieces;
    int count = 0;
    if (most > 0) {
        const uint32_t least = merge_pieces(ranks, pieces, most, begin);
        for (int first = 0; first < pieces; first += 32) {
            const int p = first + lane;
            int own = 0;
            if (p < pieces) {
                const uint32_t* of = ranks + int64_t(p) * MOST;
                while (own < most && of[own] >= least && of[own]) own++;
                if (own == most) {  // then the last of these is the least
                    int equal = 1;
                    while (equal < most && of[most - 1 - equal] == of[most - 1]) equal++;
                    own += call.ties[row * pieces + p] - equal;
                }
            }
            for (int i = 0; i < 32; i++) {
                if (lane == i && p < pieces) begin[p] = count;
                count += int(of_lane(uint32_t(own), i));
            }
        }
        if (lane == 0) call.least[row] = least;
    }
    if (lane == 0) call.counts[row] = count;
}

constexpr int AT_ONCE = 8;  // of a lane's logits

template <int dtype>
DALI_DEVICE void collect_piece(const HighestCall& call, const Piece& piece, uint32_t least) {
    int begin = call.begin[piece.at / MOST];
#pragma unroll 1
    for (int first = 0; first < OWN; first += AT_ONCE) {
        float values[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) values[i] = logit_of<dtype>(call, piece, first + i);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int id = id_of(piece, first + i);
            const bool kept = id < call.width && rank_of(values[i]) >= least;
            const uint32_t all = votes(kept);
            const int place = begin + count_bits(all & ((1u << lane_of_warp()) - 1));
            if (kept && place < HIGHEST) {
                call.ids[piece.row * HIGHEST + place] = id;
                call.values[piece.row * HIGHEST + place] = values[i];
            }
            begin += count_bits(all);
        }
    }
}

DALI_KERNEL collect_highest(DALI_CALL(HighestCall) call) {
    Piece piece;
    if (!find_piece(call, piece)) return;
    const uint32_t least = call.least[piece.row];
    if (call.ranks[piece.at] < least) return;
    by_dtype(call.dtype, [&](auto dtype) { collect_piece<dtype.value>(call, piece, least); });
}

}  // namespace dali::gpu
