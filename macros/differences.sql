{#- Rows that one relation has and the other lacks, both ways, as multisets. -#}
{% macro differences(expected, restored) %}
select
    'missing' as difference,
    missing.*
from (
    select * from {{ expected }}
    except all
    select * from {{ restored }}
) as missing

union all

select
    'invented' as difference,
    invented.*
from (
    select * from {{ restored }}
    except all
    select * from {{ expected }}
) as invented
{% endmacro %}
