"""From a CSV file of irregular time series to a trained network, its report, and predictions: `odenets fit`."""

from odenets.extra import experiments_extra

with experiments_extra("`odenets.tabular`"):
    from odenets.tabular.fit import FitOptions, fit_file
    from odenets.tabular.predict import predict_file
    from odenets.tabular.read import Columns

__all__ = ["Columns", "FitOptions", "fit_file", "predict_file"]
