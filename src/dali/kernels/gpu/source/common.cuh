// What all layouts share.
#pragma once

#include "attention.cuh"
#include "join.cuh"
#include "norm.cuh"
#include "post.cuh"
#include "turn.cuh"
