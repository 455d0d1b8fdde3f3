from django.db import migrations

from marketplace.roles import Grant

VIEWS = ['marketplace.view_reconciliation', 'marketplace.view_reconciliationfinding']


class Migration(migrations.Migration):

    dependencies = [
        ('marketplace', '0027_messages_sent_again'),
    ]

    operations = [
        Grant({'viewer': VIEWS, 'operator': VIEWS, 'finance': VIEWS, 'admin': VIEWS}),
    ]
