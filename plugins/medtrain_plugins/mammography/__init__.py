"""The family room of the breast-cancer risk models: the cohorts, networks, weights and evaluation they share."""

# Modules that older run directories name, and where they are now.
MOVED = {
    "medtrain_plugins.mammography.augmentation": "medtrain_plugins.mammography.cohort.augmentation",
    "medtrain_plugins.mammography.backbone": "medtrain_plugins.mammography.model.backbone",
    "medtrain_plugins.mammography.dataset": "medtrain_plugins.mammography.cohort.dataset",
    "medtrain_plugins.mammography.layers": "medtrain_plugins.mammography.model.layers",
    "medtrain_plugins.mammography.losses": "medtrain_plugins.mammography.model.losses",
    "medtrain_plugins.mammography.metrics": "medtrain_plugins.mammography.evaluation.metrics",
    "medtrain_plugins.mammography.registration": "medtrain_plugins.mammography.model.registration",
    "medtrain_plugins.mammography.risk_model": "medtrain_plugins.mammography.model.risk_model",
    "medtrain_plugins.mammography.samples": "medtrain_plugins.mammography.cohort.samples",
    "medtrain_plugins.mammography.swin": "medtrain_plugins.mammography.model.swin",
}
