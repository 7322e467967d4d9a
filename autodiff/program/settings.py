"""What programs depend on besides what they do."""

from treepie.kernels import config
from treepie.kernels.threads import get_num_threads as get_num_threads

#: Whether pure functions are held to their word: traced at each call, and compared.
CHECK = config.CHECK
