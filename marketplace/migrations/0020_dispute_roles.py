from django.db import migrations

from marketplace.roles import Grant

VIEWS = ['marketplace.view_dispute']
FINANCE = ['marketplace.enter_dispute_amount']


class Migration(migrations.Migration):

    dependencies = [
        ('marketplace', '0019_traces'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='dispute',
            options={'ordering': ('-id',), 'permissions': [('enter_dispute_amount', 'Can enter how much of an order a dispute is')], 'verbose_name': 'dispute', 'verbose_name_plural': 'disputes'},
        ),
        Grant({'viewer': VIEWS, 'operator': VIEWS, 'finance': VIEWS + FINANCE, 'admin': VIEWS + FINANCE}),
    ]
