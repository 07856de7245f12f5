// What all layouts share.
#pragma once

#include "attention.cuh"
#include "highest.cuh"
#include "join.cuh"
#include "mlp.cuh"
#include "norm.cuh"
#include "post.cuh"
#include "router.cuh"
#include "turn.cuh"
