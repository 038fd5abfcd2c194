"""The deep probe: all-reduce over all GPUs, copies between pairs, and a GEMM on each, in children with hard deadlines."""
