"""Model bundles and the engines that run them. Imports neither cxrnode nor training."""

from engines import offline as offline
