-- Every death that the ledger calls encoded comes back on its date, and none else.
{{ config(tags=['round_trip']) }}
with

expected as (

    select person_id, death_date from {{ ref('int_deaths_checked') }}
    where reason is null

),

restored as (

    select person_id, death_date from {{ ref('death') }}

)

{{ differences('expected', 'restored') }}
