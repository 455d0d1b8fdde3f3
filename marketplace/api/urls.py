from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView
from rest_framework.routers import SimpleRouter

from marketplace.api import (
    bulk_retries,
    debts,
    disputes,
    orders,
    reconciliations,
    refunds,
    sellers,
    stats,
    tokens,
    transfers,
    views,
    webhook_events,
)

app_name = "api"

router = SimpleRouter(use_regex_path=False)
router.register("orders", orders.OrderViewSet, basename="order")
router.register("transfers", transfers.TransferViewSet, basename="transfer")
router.register("refunds", refunds.RefundViewSet, basename="refund")
router.register("disputes", disputes.DisputeViewSet, basename="dispute")
router.register("reversals", transfers.ReversalViewSet, basename="reversal")
router.register("debts", debts.DebtViewSet, basename="debt")
router.register("bulk-retries", bulk_retries.BulkRetryViewSet, basename="bulk-retry")
router.register("sellers", sellers.SellerViewSet, basename="seller")
router.register("products", sellers.ProductViewSet, basename="product")
router.register("tokens", tokens.ApiTokenViewSet, basename="token")
router.register("reconciliations", reconciliations.ReconciliationViewSet, basename="reconciliation")
router.register("drift", reconciliations.DriftViewSet, basename="drift")
router.register("webhook-events", webhook_events.WebhookEventViewSet, basename="webhook-event")

urlpatterns = [
    path("", include(router.urls)),
    path(
        "orders/<int:order_id>/refunds/",
        refunds.OrderRefundViewSet.as_view({"get": "list", "post": "create"}),
        name="order-refunds",
    ),
    path("orders/<int:order_id>/refund-plan/", refunds.RefundPlanView.as_view(), name="refund-plan"),
    path(
        "bulk-retries/<int:id>/items/",
        bulk_retries.BulkRetryItemViewSet.as_view({"get": "list"}),
        name="bulk-retry-items",
    ),
    path("stats/", stats.StatsView.as_view(), name="stats"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", views.DocsView.as_view(url_name="api:schema"), name="docs"),
    re_path("", views.NothingHereView.as_view(), name="nothing-here"),
]
