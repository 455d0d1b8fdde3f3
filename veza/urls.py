from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import TemplateView

from marketplace import monitoring
from marketplace.api.webhooks import stripe_webhook

handler404 = "marketplace.api.problems.not_found"
handler500 = "marketplace.api.problems.server_error"

urlpatterns = [
    path("", TemplateView.as_view(template_name="start.html"), name="start"),
    path("favicon.ico", TemplateView.as_view(template_name="favicon.svg", content_type="image/svg+xml")),
    path("admin/", admin.site.urls),
    path("api/", include("marketplace.api.urls")),
    # Without the slash too: Stripe takes a redirect for a failure.
    re_path(r"^webhooks/stripe/?$", stripe_webhook, name="stripe-webhook"),
    path("healthz", monitoring.healthz, name="healthz"),
    path("readyz", monitoring.readyz, name="readyz"),
    path("metrics", monitoring.metrics, name="metrics"),
]
