"""Estimators of irregular time series with scikit-learn's conventions: `fit`, `predict`, `score`, no model to write."""

from odenets.extra import experiments_extra

with experiments_extra("`odenets.estimators`"):
    from odenets.estimators.classifier import SeriesClassifier
    from odenets.estimators.forecaster import SeriesForecaster
    from odenets.estimators.regressor import SeriesRegressor

__all__ = ["SeriesClassifier", "SeriesForecaster", "SeriesRegressor"]
