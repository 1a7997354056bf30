-- Every death that the ledger calls encoded comes back on its date, the earliest of its
-- person, and none else.
{{ config(tags=['round_trip']) }}
with

persons as (

    select person_id, min(year_of_birth) as year_of_birth
    from {{ ref('stg_omop__person') }}
    group by 1

),

expected as (

    select
        deaths.person_id,
        min(
            {{ coarse_date('deaths.death_date', 'anchors.anchor_date') }}
        ) as death_date
    from {{ ref('stg_omop__death') }} as deaths
    inner join persons on deaths.person_id = persons.person_id
    left join {{ ref('int_spans_chosen') }} as spans
        on deaths.person_id = spans.person_id
    left join {{ ref('int_persons_anchored') }} as anchors
        on deaths.person_id = anchors.person_id
    where
        deaths.death_date is not null
        and (
            spans.person_id is null
            or deaths.death_date between spans.first_date and spans.last_date
        )
    {%- if var('start_date') %}
        and deaths.death_date >= cast('{{ var("start_date") }}' as date)
        {%- endif %}
    {%- if var('apply_age_filter') %}
        and not coalesce({{ is_ninety('deaths.death_date') }}, false)
        {%- endif %}
    {%- if not var('include_death') %}
        and 1 = 0
        {%- endif %}
    group by 1

),

restored as (

    select person_id, death_date from {{ ref('death') }}

)

{{ differences('expected', 'restored') }}
