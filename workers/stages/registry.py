"""All stages of a job, in the order in which they run."""

from workers.stages import calibrate, compress, distill, evaluate, inspect, package, plan, quantise, tune, verify, write
from workers.stages.stage import Stage

STAGES: tuple[Stage, ...] = (
    inspect.STAGE,
    calibrate.STAGE,
    plan.STAGE,
    compress.STAGE,
    distill.STAGE,
    quantise.STAGE,
    tune.STAGE,
    write.STAGE,
    evaluate.STAGE,
    package.STAGE,
    verify.STAGE,
)
