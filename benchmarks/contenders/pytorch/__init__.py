"""PyTorch on the CPU, in the form in which it is fastest: inference mode, and gradients without accumulation."""
