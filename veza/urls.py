from django.contrib import admin
from django.urls import include, path
from django.views.generic import TemplateView

from marketplace import monitoring
from marketplace.api.webhooks import stripe_webhook
from veza.middleware import WEBHOOK_ROUTES

handler400 = "marketplace.api.problems.bad_request"
handler403 = "marketplace.api.problems.permission_denied"
handler404 = "marketplace.api.problems.not_found"
handler500 = "marketplace.api.problems.server_error"

urlpatterns = [
    path("", TemplateView.as_view(template_name="start.html"), name="start"),
    path("favicon.ico", TemplateView.as_view(template_name="favicon.svg", content_type="image/svg+xml")),
    path("admin/", admin.site.urls),
    path("api/", include("marketplace.api.urls")),
    *(path(route, stripe_webhook, name="stripe-webhook") for route in WEBHOOK_ROUTES),
    path("healthz", monitoring.healthz, name="healthz"),
    path("readyz", monitoring.readyz, name="readyz"),
    path("metrics", monitoring.metrics, name="metrics"),
]
