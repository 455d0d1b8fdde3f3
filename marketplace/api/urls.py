from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView
from rest_framework.routers import SimpleRouter

from marketplace.api import bulk_retries, reconciliations, views

app_name = "api"

router = SimpleRouter(use_regex_path=False)
router.register("orders", views.OrderViewSet, basename="order")
router.register("transfers", views.TransferViewSet, basename="transfer")
router.register("refunds", views.RefundViewSet, basename="refund")
router.register("disputes", views.DisputeViewSet, basename="dispute")
router.register("reversals", views.ReversalViewSet, basename="reversal")
router.register("debts", views.DebtViewSet, basename="debt")
router.register("bulk-retries", bulk_retries.BulkRetryViewSet, basename="bulk-retry")
router.register("sellers", views.SellerViewSet, basename="seller")
router.register("products", views.ProductViewSet, basename="product")
router.register("tokens", views.ApiTokenViewSet, basename="token")
router.register("reconciliations", reconciliations.ReconciliationViewSet, basename="reconciliation")
router.register("drift", reconciliations.DriftViewSet, basename="drift")
router.register("webhook-events", views.WebhookEventViewSet, basename="webhook-event")

urlpatterns = [
    path("", include(router.urls)),
    path(
        "orders/<int:order_id>/refunds/",
        views.OrderRefundViewSet.as_view({"get": "list", "post": "create"}),
        name="order-refunds",
    ),
    path("orders/<int:order_id>/refund-plan/", views.RefundPlanView.as_view(), name="refund-plan"),
    path(
        "bulk-retries/<int:id>/items/",
        bulk_retries.BulkRetryItemViewSet.as_view({"get": "list"}),
        name="bulk-retry-items",
    ),
    path("stats/", views.StatsView.as_view(), name="stats"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", views.DocsView.as_view(url_name="api:schema"), name="docs"),
    re_path("", views.NothingHereView.as_view(), name="nothing-here"),
]
