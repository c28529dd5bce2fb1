"""What ``dembench check loss|method|model|data`` looks at: one finding for each thing, with the reason where it fails.

The numbers that decide are made here: finite differences in float64, a second object, a batch of one.
"""

from .data import check_data as check_data
from .finding import Finding as Finding
from .finding import findings as findings
from .loss import check_loss as check_loss
from .method import check_method as check_method
from .model import check_model as check_model
