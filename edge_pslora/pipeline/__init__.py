"""From a user's data to a published generation: the one place where all parts meet."""

from edge_pslora.pipeline.plan_only import plan_session
from edge_pslora.pipeline.result import AdaptResult
from edge_pslora.pipeline.run import adapt

__all__ = ["AdaptResult", "adapt", "plan_session"]
