"""PolyCL for MONAI Label: `polycl serve`, or `python -m monailabel.main start_server --app apps/polycl --studies DIR`.

MONAI Label creates folders for models and logs beside this file; where that cannot be written, use `polycl serve`,
which keeps them in its state folder. The tasks and strategies are registered in `polycl.monailabel.app`.
"""

from polycl.monailabel.app import PolyclApp

__all__ = ["PolyclApp"]
