"""Say as JSON what torch sees of the GPU whose name comes as a line, such as `cuda:0`; `workers.gpu` runs this."""

import json
import sys

import torch

if __name__ == "__main__":
    seen = torch.cuda.get_device_properties(torch.device(sys.stdin.readline().strip()))
    json.dump({"name": seen.name, "memory_bytes": seen.total_memory}, sys.stdout)
