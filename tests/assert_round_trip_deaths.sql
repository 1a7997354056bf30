-- Every death that the ledger calls encoded comes back on its date, and none else.
{{ config(tags=['round_trip']) }}
with

expected as (

    select person_id, death_date from {{ ref('int_deaths_checked') }}
    where reason is null

),

restored as (

    select person_id, death_date from {{ ref('death') }}

),

missing as (

    select 'missing' as difference, expected.* from expected
    except all
    select 'missing' as difference, restored.* from restored

),

invented as (

    select 'invented' as difference, restored.* from restored
    except all
    select 'invented' as difference, expected.* from expected

)

select * from missing
union all
select * from invented
