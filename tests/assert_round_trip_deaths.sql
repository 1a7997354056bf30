-- Every death that the ledger calls encoded comes back on its date, and none else.
{{ config(tags=['round_trip']) }}
with

expected as (

    select
        deaths.person_id,
        {{ coarse_date('deaths.death_date', 'anchors.anchor_date') }} as death_date
    from {{ ref('int_deaths_checked') }} as deaths
    left join {{ ref('int_persons_anchored') }} as anchors
        on deaths.person_id = anchors.person_id
    where deaths.reason is null

),

restored as (

    select person_id, death_date from {{ ref('death') }}

)

{{ differences('expected', 'restored') }}
