from django.db import migrations

from marketplace.roles import Grant

VIEWS = [
    'marketplace.view_circuitbreaker',
    'marketplace.view_debt',
    'marketplace.view_order',
    'marketplace.view_product',
    'marketplace.view_refund',
    'marketplace.view_requestallowance',
    'marketplace.view_seller',
    'marketplace.view_sellertransfer',
    'marketplace.view_transferreversal',
    'marketplace.view_webhookevent',
    'marketplace.view_workerheartbeat',
]
OPERATOR = ['marketplace.replay_webhookevent', 'marketplace.retry_sellertransfer']
FINANCE = [
    'marketplace.add_refund',
    'marketplace.decline_sellertransfer',
    'marketplace.record_debt_payment',
    'marketplace.write_off_debt',
]
ADMIN = [
    'auth.add_group',
    'auth.add_user',
    'auth.change_group',
    'auth.change_user',
    'auth.view_group',
    'auth.view_user',
    'marketplace.add_product',
    'marketplace.add_seller',
    'marketplace.change_product',
    'marketplace.change_seller',
]


class Migration(migrations.Migration):

    dependencies = [
        ('marketplace', '0008_conservation'),
        ('auth', '0012_alter_user_first_name_max_length'),
        ('contenttypes', '0002_remove_content_type_name'),
    ]

    operations = [
        Grant(
            {
                'viewer': VIEWS,
                'operator': VIEWS + OPERATOR,
                'finance': VIEWS + FINANCE,
                'admin': VIEWS + OPERATOR + FINANCE + ADMIN,
            }
        ),
    ]
