"""Low precision: rounding to any number of mantissa bits, and what rounding loses.

```python
from halflife import precision

precision.round_to(x, bits=7)  # x.bfloat16().float(), to the bit
```
"""

from halflife.precision.rounding import round_stochastically, round_to, smallest_effective_fraction
from halflife.precision.updates import LostUpdates, lost_updates

__all__ = ["LostUpdates", "lost_updates", "round_stochastically", "round_to", "smallest_effective_fraction"]
