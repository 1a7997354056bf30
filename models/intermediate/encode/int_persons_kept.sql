-- One row per person whose rows are all as they were in the earlier encode: its visits,
-- events and tokens are taken over. Empty where nothing came before.
with

now as (

    select * from {{ ref('int_persons_hashed') }}

),

earlier as (

    {%- if has_before() %}
        select * from {{ before('int_persons_hashed') }}
    {%- else %}

        -- nothing came before
        select * from {{ ref('int_persons_hashed') }}
        where 1 = 0
    {%- endif %}

),

compared as (

    select
        coalesce(now.person_id, earlier.person_id) as person_id,
        coalesce(
            now.row_count = earlier.row_count and now.hash_sum = earlier.hash_sum,
            false
        ) as is_same
    from now
    full outer join earlier
        on now.person_id = earlier.person_id and now.table_name = earlier.table_name
    {%- if not has_before() %}
        where 1 = 0
    {%- endif %}

),

final as (

    select person_id
    from compared
    where {{ 'false' if var('encode_all') else 'true' }}
    group by 1
    having min(case when is_same then 1 else 0 end) = 1

)

select * from final
